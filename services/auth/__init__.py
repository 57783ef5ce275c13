"""The auth service: people, organisations and keys, and what turns a credential into an identity.

It owns users, memberships, invitations, API keys and the keys that sign tokens. It never knows
about money, models or requests, and never calls another service.
"""
