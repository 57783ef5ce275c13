"""Which model answered a conversation, so that its provider's prompt cache is used. In memory."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

# Least recently used ones go first: a conversation that is forgotten is routed anew, no more.
CONVERSATIONS = 20_000
_DIGEST_BYTES = 16


class Sticky:
    """Remembers `provider/model` by organisation and the beginning of a conversation."""

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def key(self, organisation_id: str, wishes: str, beginning: bytes) -> bytes:
        """Return what a conversation is remembered by; empty when it is not.

        The organisation is part of it: nobody learns from a choice what somebody else has asked.
        """
        if not self._keep_s or not beginning:
            return b""
        digest = hashlib.blake2b(f"{organisation_id}\0{wishes}\0".encode(), digest_size=_DIGEST_BYTES)
        digest.update(beginning)
        return digest.digest()

    def find(self, key: bytes) -> str:
        """Return the target that answered the conversation last; empty when that is not known."""
        found = self._known.get(key)
        if found is None:
            return ""
        target, until = found
        if self._clock() > until:
            del self._known[key]
            return ""
        return target

    def keep(self, key: bytes, target: str) -> None:
        """Remember who answered."""
        if not key:
            return
        self._known[key] = target, self._clock() + self._keep_s
        self._known.move_to_end(key)
        if len(self._known) > CONVERSATIONS:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)
