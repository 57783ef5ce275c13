"""The edge: generates Envoy's configuration from the contracts, checks it, and runs Envoy with it.

It owns the public port. It never authenticates, never decides and never reads a body.
"""
