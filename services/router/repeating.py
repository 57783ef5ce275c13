"""Work that repeats for as long as the process runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.common.rpc import RpcError

_logger = logging.getLogger(__name__)


async def repeat(work: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """Do `work` again and again; a failure is logged and the next turn tries again."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await work()
        except RpcError as error:
            _logger.warning("background_work_failed %s %s", work.__name__, error)
        except Exception:
            _logger.exception("background_work_failed %s", work.__name__)
