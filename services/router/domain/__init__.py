"""Decisions of the router: pure functions and values."""
