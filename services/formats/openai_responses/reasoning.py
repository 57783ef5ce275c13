"""Thoughts of other vendors inside `encrypted_content`, so that they come back with the next turn.

A client of this format returns reasoning items as it got them. What another vendor needs to accept
its own thoughts again, a signature or opaque data, travels there under a prefix that tells it apart
from what the format's own vendor encrypts.
"""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import ReasoningPart

_SIGNATURE = "omnihub.signature."
_REDACTED = "omnihub.redacted."
# Stands in every sealed text.
SEAL = b'"omnihub.'


def seal(reasoning: ReasoningPart) -> str:
    """Return the `encrypted_content` of a thought; empty when nothing needs to come back."""
    if reasoning.redacted:
        return _REDACTED + reasoning.encrypted
    if reasoning.signature:
        return _SIGNATURE + reasoning.signature
    return reasoning.encrypted


def unseal(encrypted: str, reasoning: ReasoningPart) -> None:
    """Put `encrypted_content` where it came from."""
    if encrypted.startswith(_SIGNATURE):
        reasoning.signature = encrypted.removeprefix(_SIGNATURE)
    elif encrypted.startswith(_REDACTED):
        reasoning.encrypted = encrypted.removeprefix(_REDACTED)
        reasoning.redacted = True
    else:
        reasoning.encrypted = encrypted
