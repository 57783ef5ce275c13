"""Group commit: what several tasks want done at the same time is done together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

MOST = 100

_logger = logging.getLogger(__name__)


class Gathering[Item, Result]:
    """Hands items to `work`: the first one at once, those that come meanwhile together, in their order.

    Waiting for nobody it costs no time while there is little to do, and under load one transaction serves many.
    `work` returns a result for each item. When it fails for several, each is done again alone, so that one
    that cannot be done does not keep the others from it: `work` must be one that may be repeated.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], most: int = MOST
    ) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """Return what `work` returns for an item, or raise what it raises. A caller who leaves stops nothing."""
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
        finally:
            self._task = None
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()

    async def _together(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is raised to whoever waits for it
            if len(batch) == 1:
                _tell(batch[0][1], error)
                return
            _logger.warning("done_one_by_one %s", type(error).__name__)
            for each in batch:
                await self._together([each])
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _tell[Result](future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
