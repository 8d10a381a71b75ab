"""Git servers and their forges: one commit on one branch and one pull request, found again by name.

Room: operator, clients.
"""
