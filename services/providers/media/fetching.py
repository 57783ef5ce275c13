"""Outputs that lie at the provider itself, and that only its credential opens."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from yarl import URL

from services.providers.media.http_adapter import HttpMediaAdapter

LARGEST_OUTPUT = 512 * 2**20
PIECE = 2**20


class FetchingMediaAdapter(HttpMediaAdapter):
    """Base of the adapters that hand out outputs."""

    async def fetch(self, reference: str) -> AsyncGenerator[bytes, None]:
        """Yield an output in pieces. Only addresses below the base are asked; redirects are refused."""
        failures = self.failures("")
        # Made anew from parts: whatever the reference is, the host is ours.
        parsed = URL(str(self.base.origin()) + "/" + reference.lstrip("/"))
        if parsed.origin() != self.base.origin() or not parsed.path.startswith(self.base.path):
            raise failures.of("NOT_FOUND", "has no such output")
        own = self.settings.timeouts
        limits = self.question()
        limits = type(limits)(limits.connect_s, limits.first_token_s, own.idle_s, own.total_s)
        exchange = await self.upstream.send(parsed, self.headers, None, limits, failures, stream=True)
        try:
            if exchange.status != 200:
                raise self.refused(exchange.status, exchange.headers, await exchange.read_error(), failures)
            size = 0
            while data := await exchange.read_chunk():
                exchange.got_token = True
                size += len(data)
                if size > LARGEST_OUTPUT:
                    raise failures.of("BODY_TOO_LARGE", f"its output exceeds {LARGEST_OUTPUT} bytes")
                for start in range(0, len(data), PIECE):
                    yield data[start : start + PIECE]
            await exchange.finish()
        finally:
            exchange.close()
