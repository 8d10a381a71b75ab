"""The command line of a person on call: look, understand, act.

Room: cli. `cluster` and `probes` talk to the API server, `commands` ties things together; everything else is pure:
typed objects and `now` in, words out.
"""
