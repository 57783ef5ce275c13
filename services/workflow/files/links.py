"""Signed, expiring links to files: whoever has one may read that one file until then."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

LINK_TTL_S = 3600


class Links:
    """Makes and checks links below `base`, such as https://hub.example.com, once it has been opened."""

    def __init__(self, base: str, clock: Callable[[], float], ttl_s: int = LINK_TTL_S) -> None:
        self._secret = b""
        self._base = base.rstrip("/")
        self._clock = clock
        self._ttl_s = ttl_s

    def open(self, secret: bytes) -> None:
        """Take the secret that all replicas sign with."""
        self._secret = secret

    def to(self, file_id: str) -> str:
        """Return a link to a file."""
        expires = int(self._clock()) + self._ttl_s
        return f"{self._base}/files/{file_id}?expires={expires}&signature={self._sign(file_id, expires)}"

    def problem(self, file_id: str, expires: str, signature: str) -> str:
        """Return what is wrong with a link; empty when it opens the file."""
        if not (expires.isascii() and expires.isdigit()) or len(expires) > 15:
            return "the link is not complete; ask for a new one"
        signed = self._sign(file_id, int(expires)).encode()
        if not hmac.compare_digest(signed, signature.encode(errors="replace")):
            return "the link has been altered; ask for a new one"
        if int(expires) < self._clock():
            return "the link has expired; ask for a new one"
        return ""

    def _sign(self, file_id: str, expires: int) -> str:
        if not self._secret:
            raise RuntimeError("links are signed once the service has been started")
        return hmac.new(self._secret, f"{file_id}\n{expires}".encode(), hashlib.sha256).hexdigest()
