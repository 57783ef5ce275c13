"""Group commit: what several tasks want done at the same time is done together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 100

_logger = logging.getLogger(__name__)


class Gathering(Generic[Item, Result]):
    """Hands items to `work`: the first one at once, those that come meanwhile together, in their order.

    While there is little to do it waits for nobody and costs no time; under load one transaction serves many.
    With `linger_s` it then pauses for so long between two of them, which makes them fewer and larger. `work`
    returns a result for each item. When it fails for several, each is done again alone, so that one that
    cannot be done does not keep the others from it: `work` must be one that may be repeated.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        most: int = MOST,
        linger_s: float = 0.0,
    ) -> None:
        self._work = work
        self._most = most
        self._linger_s = linger_s
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """Return what `work` returns for an item, or raise what it raises. Who leaves early stops nothing."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name="gathering")
        return await future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._together(batch)
                if self._linger_s and len(batch) > 1:
                    await asyncio.sleep(self._linger_s)
        finally:
            self._task = None
            # Only when this is cancelled, at the end of the process, is anybody left.
            for _, future in self._waiting:
                future.cancel()

    async def _together(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - who waits gets it
            if len(batch) == 1:
                (_, future), *_ = batch
                if not future.done():
                    future.set_exception(error)
                return
            _logger.warning("done_one_by_one %s", type(error).__name__)
            for each in batch:
                await self._together([each])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
