"""HTTP to providers: one session per process, driven directly, with limits on time and size."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from services.providers.domain.failure import BEFORE, MID_STREAM, Failures, Phase, ProviderError
from services.providers.posting import LARGEST_BODY, SKIPPED_HEADERS, Answer, Connector, Posting
from services.providers.wire import Body

BODY_LIMIT = 64 * 2**20
FRAME_LIMIT = 16 * 2**20
_ERROR_BODY_LIMIT = 64 * 2**10
_DRAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one attempt, in seconds."""

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float


class Upstream:
    """The shared session. `start` and `stop` belong to the service's life."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._posting: Posting | None = None
        self._connector: Connector
        self._loop: asyncio.AbstractEventLoop
        self._client_timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the session."""
        if self._session is None:
            self._loop = asyncio.get_running_loop()
            self._connector = Connector()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=SKIPPED_HEADERS,
                auto_decompress=True,
            )
            self._posting = Posting(self._session, self._connector)

    async def stop(self) -> None:
        """Close all connections."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            await self._connector.close()
            self._session = self._posting = None

    async def check(self) -> None:
        """Raise when requests would fail."""
        if self._session is None:
            raise RuntimeError("the session to providers is not open")

    async def send(
        self,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | None,
        timeouts: Timeouts,
        failures: Failures,
        stream: bool,
        method: str = "",
    ) -> Exchange:
        """Send a request and return the exchange once the headers are here.

        Without a method it is a POST where there is a body, else a GET.
        """
        if self._posting is None:
            raise failures.of("UNAVAILABLE", "the providers service has not been started or is stopping")
        method = method or ("GET" if body is None else "POST")
        started = self._loop.time()
        # A whole answer may take its time before the first header.
        wait_s = min(timeouts.first_token_s, timeouts.total_s) if stream else timeouts.total_s
        head = None
        if method == "POST" and body is not None and len(body) <= LARGEST_BODY:
            head = self._posting.head(url, headers)
        response: Answer | aiohttp.ClientResponse
        try:
            if head is not None and body is not None:
                response = await self._posting.post(head, body, timeouts.connect_s, wait_s)
            else:
                response = await self._request(method, url, headers, body, timeouts.connect_s, wait_s)
        except aiohttp.ConnectionTimeoutError:
            message = f"no connection within {timeouts.connect_s:g} s"
            raise failures.of("PROVIDER_TIMEOUT", message, sent=False) from None
        except TimeoutError:
            raise failures.of("PROVIDER_TIMEOUT", f"no answer within {wait_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error, failures) from None
        return Exchange(response, timeouts, failures, started, self._loop)

    async def _request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | None,
        connect_s: float,
        wait_s: float,
    ) -> aiohttp.ClientResponse:
        """Send anything through the session. Large bodies go out in pieces, not to hold up other requests."""
        assert self._session is not None
        data = io.BytesIO(body) if body is not None and len(body) > LARGEST_BODY else body
        async with asyncio.timeout(wait_s):
            return await self._session.request(
                method,
                url,
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=self._client_timeout(connect_s),
            )

    async def open_socket(
        self, url: URL, headers: Mapping[str, str], connect_s: float, failures: Failures
    ) -> aiohttp.ClientWebSocketResponse:
        """Return an open WebSocket whose messages are at most FRAME_LIMIT bytes. Raises PROVIDER_FAILED."""
        if self._session is None:
            raise failures.of("UNAVAILABLE", "the providers service has not been started or is stopping")
        try:
            async with asyncio.timeout(connect_s):
                return await self._session.ws_connect(url, headers=headers, max_msg_size=FRAME_LIMIT)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise failures.of("PROVIDER_FAILED", f"no WebSocket: {type(error).__name__}") from None

    def run(self, work: Coroutine[None, None, None]) -> None:
        """Let `work` run until it ends or the session is closed."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _client_timeout(self, connect_s: float) -> aiohttp.ClientTimeout:
        timeout = self._client_timeouts.get(connect_s)
        if timeout is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
            self._client_timeouts[connect_s] = timeout
        return timeout


def _broken(error: Exception, failures: Failures, phase: Phase = BEFORE) -> ProviderError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return failures.of("PROVIDER_FAILED", f"cannot connect: {error.strerror or error}", phase, sent=False)
    # The latter is a connection that was kept for reuse and turns out to be closed.
    if isinstance(error, (aiohttp.ServerDisconnectedError, ConnectionError, aiohttp.ClientOSError)):
        return failures.of("PROVIDER_FAILED", "closed the connection without an answer", phase)
    if isinstance(error, aiohttp.InvalidURL):
        return failures.of("PROVIDER_FAILED", "its base_url is not a valid address", phase, sent=False)
    return failures.of("PROVIDER_PROTOCOL", f"broke HTTP: {type(error).__name__}", phase)


def content_type(headers: Mapping[str, str]) -> str:
    """Return the type that headers name, without parameters."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


class Exchange:
    """One answer being read. Ends with `release` (keeps the connection) or `close` (does not)."""

    __slots__ = (
        "_armed_for",
        "_deadline",
        "_expired",
        "_failures",
        "_last",
        "_loop",
        "_response",
        "_started",
        "_timeouts",
        "_timer",
        "_waiting",
        "got_token",
        "headers",
        "phase",
        "status",
    )

    def __init__(
        self,
        response: Answer | aiohttp.ClientResponse,
        timeouts: Timeouts,
        failures: Failures,
        started: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.phase: Phase = BEFORE
        self.got_token = False
        """Set by the reader once the first token has come; until then the first-token limit holds."""
        self._response = response
        self._timeouts = timeouts
        self._failures = failures
        self._loop = loop
        self._started = started
        self._deadline = self._last = started + timeouts.total_s
        self._waiting = False
        self._expired = ""
        self._armed_for = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def content_type(self) -> str:
        """Return the type of the body, without parameters."""
        return content_type(self.headers)

    async def read_body(self, limit: int = BODY_LIMIT) -> bytes:
        """Return the whole body. Raises PROVIDER_PROTOCOL when it is too large."""
        content = self._response.content
        if content.is_eof() and content.exception() is None:
            # Most answers are here whole, beside their head.
            body = content.read_nowait()
            if len(body) <= limit:
                self.release()
                return body
            raise self._too_large(limit)
        pieces: list[bytes] = []
        size = 0
        while piece := await self._read(self._last):
            size += len(piece)
            if size > limit:
                raise self._too_large(limit)
            pieces.append(piece)
        self.release()
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def _too_large(self, limit: int) -> ProviderError:
        message = f"its answer exceeds {limit} bytes"
        return self._failures.of("PROVIDER_PROTOCOL", message, self.phase, http_status=self.status)

    async def read_error(self) -> bytes:
        """Return the start of an error's body: what of it comes in time. Its status says enough without."""
        pieces: list[bytes] = []
        size = 0
        deadline = self._loop.time() + self._timeouts.idle_s
        try:
            while size < _ERROR_BODY_LIMIT and (piece := await self._read(deadline)):
                size += len(piece)
                pieces.append(piece)
        except ProviderError:
            if self.status == 200:
                raise
        return b"".join(pieces)[:_ERROR_BODY_LIMIT]

    def read_chunk(self) -> Awaitable[bytes]:
        """Return what has arrived, waiting for it within the limits; empty at the end of the stream."""
        if self.got_token:
            return self._read(self._loop.time() + self._timeouts.idle_s)
        return self._read(self._started + self._timeouts.first_token_s)

    def offer_to(self, accept: Callable[[bytes], bool]) -> None:
        """Let `accept` have what comes while `read_chunk` waits, which then waits on. It must `touch`."""
        content = self._response.content
        if isinstance(content, Body):
            content.offer_to(accept)

    def touch(self) -> None:
        """Begin to wait anew: something has come."""
        deadline = self._loop.time() + self._timeouts.idle_s
        self._deadline = deadline if deadline < self._last else self._last

    def _offer_no_more(self) -> None:
        # What accepts holds this exchange, and this exchange holds it.
        content = self._response.content
        if isinstance(content, Body):
            content.offer_to(None)

    async def _read(self, deadline: float) -> bytes:
        self._deadline = deadline if deadline < self._last else self._last
        # What has all arrived needs no clock.
        if self._deadline < self._armed_for and not self._response.content.is_eof():
            self._arm(self._deadline)
        self._waiting = True
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            if self._expired:
                raise self._failures.of("PROVIDER_TIMEOUT", self._expired, self.phase) from None
            if self.phase == MID_STREAM:
                message = "the connection broke before the answer was complete"
                raise self._failures.of("STREAM_TRUNCATED", message, MID_STREAM) from None
            raise _broken(error, self._failures, self.phase) from None
        finally:
            self._waiting = False

    def _arm(self, when: float) -> None:
        self._disarm()
        self._armed_for = when
        self._timer = self._loop.call_at(when, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        """Close the connection when it is the provider that is being waited for. Late ticks are re-armed."""
        now = self._loop.time()
        if not self._waiting and now < self._last:
            self._arm(min(now + self._timeouts.idle_s, self._last))
        elif now < self._deadline and now < self._last:
            self._arm(self._deadline)
        else:
            self._expired = self._describe(now >= self._last)
            self._response.close()

    def _describe(self, total: bool) -> str:
        if total:
            return f"no complete answer within {self._timeouts.total_s:g} s"
        if not self.got_token:
            return f"no first token within {self._timeouts.first_token_s:g} s"
        return f"silent for {self._timeouts.idle_s:g} s"

    async def finish(self) -> None:
        """Wait briefly for the end of the body, so that the connection can be used again."""
        if self._response.content.at_eof():
            self.release()
            return
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await self._response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.close()
        else:
            self.release()

    def release(self) -> None:
        """Give the connection back."""
        self._disarm()
        self._offer_no_more()
        self._response.release()

    def close(self) -> None:
        """Close the connection at once. Does nothing after `release`."""
        self._disarm()
        self._offer_no_more()
        self._response.close()
