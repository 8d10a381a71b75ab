"""The gateway: the OpenAI-compatible front door that splits traffic between arms, records it and measures it.

Room: gateway. Imports ratchet_api and itself only. Reads cycles and pods from Kubernetes (never writes), talks to the
arms over HTTP, writes its spool folder and uploads it to object storage.
"""
