"""Reads a provider's stream, one network read after the other."""

from __future__ import annotations

from services.formats.answers import Progress
from services.providers.domain.failure import Failures, ProviderError
from services.providers.frames import Event, FrameError, FrameParser, FrameTooLargeError
from services.providers.http import FRAME_LIMIT, Exchange


class FrameReader:
    """The frames of one answer. Not a generator: this runs for every chunk, and each level of those costs."""

    def __init__(
        self, exchange: Exchange, parser: FrameParser, progress: Progress, failures: Failures
    ) -> None:
        self._exchange = exchange
        self._parser = parser
        self._progress = progress
        self._failures = failures
        self._wrong = ""
        """What is the matter with the frame after those that were handed out."""
        self.at_end = False
        """The connection has nothing more."""

    async def next(self) -> list[Event]:
        """Return the events that came together; empty once the provider says that nothing follows.

        Raises ProviderError.
        """
        if self._wrong:
            raise self._protocol(self._wrong)
        exchange, progress = self._exchange, self._progress
        events: list[Event] = []
        while not (events or self.at_end or progress.closed):
            exchange.got_token = progress.output_chars > 0 or progress.at_work or progress.finish is not None
            try:
                chunk = await exchange.read_chunk()
            except ProviderError:
                if progress.finish is None:
                    raise
                # The answer is complete; only what would have come after it is missing.
                self.at_end = True
                return []
            events = self._parse(chunk)
        return events

    def _parse(self, chunk: bytes) -> list[Event]:
        try:
            if chunk:
                return self._parser.feed(chunk)
            self.at_end = True
            return self._parser.close()
        except FrameTooLargeError:
            raise self._protocol(f"a frame exceeds {FRAME_LIMIT} bytes") from None
        except FrameError as error:
            self._wrong = f"sent a frame that is wrong: {error}"
            if not error.before:
                raise self._protocol(self._wrong) from None
            return error.before

    def _protocol(self, message: str) -> ProviderError:
        return self._failures.of("PROVIDER_PROTOCOL", message, self._exchange.phase)
