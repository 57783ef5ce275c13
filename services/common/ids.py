"""Ids: flat, prefixed, sortable by time of creation (UUIDv7)."""

from uuid_utils import uuid7


def new_id(prefix: str) -> str:
    """Return a new id such as `req_0197f0c4...`."""
    return f"{prefix}_{uuid7().hex}"
