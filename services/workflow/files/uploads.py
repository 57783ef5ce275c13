"""Takes files in: limits, the type told from the content, how long they stay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.common.outbox import SECOND
from services.common.rpc import Call, RpcError
from services.workflow.domain.media_types import ALLOWED, UNKNOWN, agrees, canonical
from services.workflow.files.sniffing import HEAD, type_of
from services.workflow.files.store import FileStore

DAY_S = 86_400
UPLOAD, EVIDENCE, INPUT = "upload", "evidence", "input"
PURPOSES = (UPLOAD, EVIDENCE)
# Longer than any job may take.
INPUT_DAYS = 8


@dataclass(frozen=True, slots=True)
class Uploads:
    """Keeps what callers send. `days` is how long an upload stays; 0 for ever."""

    files: FileStore
    limit: int
    days: int
    clock: Callable[[], datetime]

    async def take(
        self,
        call: Call,
        pieces: AsyncIterator[bytes],
        *,
        name: str = "",
        said: str = "",
        purpose: str = UPLOAD,
        limit: int = 0,
    ) -> Any:
        """Keep a file as it arrives, and return its row.

        Raises RpcError BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_ARGUMENT; nothing is then kept.
        """
        limited = self._limited(pieces, limit or self.limit)
        head, rest = b"", b""
        async for piece in limited:
            head += piece
            if len(head) >= HEAD:
                break
        found = checked_type(head, said)
        if head:
            head, rest = head[:HEAD], head[HEAD:]

        async def remaining() -> AsyncIterator[bytes]:
            if rest:
                yield rest
            async for piece in limited:
                yield piece

        organisation_id, owner = call.identity.organisation_id, call.identity.key_id or call.identity.user_id
        now = round(self.clock().timestamp() * SECOND)
        return await self.files.put_stream(
            organisation_id,
            owner,
            head,
            remaining(),
            purpose=purpose,
            now=now,
            name=name,
            mime=found,
            expires_at=self._expiry(purpose, now),
        )

    def _expiry(self, purpose: str, now: int) -> int:
        days = {UPLOAD: self.days, EVIDENCE: 0, INPUT: INPUT_DAYS}[purpose]
        return now + days * DAY_S * SECOND if days else 0

    async def _limited(self, pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
        size = 0
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise RpcError("BODY_TOO_LARGE", f"the file exceeds {limit} bytes")
            if piece:
                yield piece


def checked_type(head: bytes, said: str = "") -> str:
    """Return the type of a content. Raises RpcError when it is not allowed, or not what is said."""
    if not head:
        raise RpcError("INVALID_ARGUMENT", "the file is empty")
    found = type_of(head)
    if found not in ALLOWED:
        named = "a type that cannot be told" if found == UNKNOWN else found
        raise RpcError(
            "UNSUPPORTED_MEDIA", f"the content is {named}; send one of {', '.join(sorted(ALLOWED))}"
        )
    if not agrees(said, found):
        raise RpcError(
            "UNSUPPORTED_MEDIA", f"the content is {found}, not {canonical(said)[:80]} as it is said to be"
        )
    return found
