"""Work that is not left half done because whoever waits for it has to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def finished(work: Coroutine[Any, Any, Result], limit_s: float | None = None) -> Result:
    """Return what `work` returns. Who is cancelled meanwhile leaves once it has ended, or after `limit_s`."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task], timeout=limit_s)
        finally:
            # Nobody would ever see the end of what goes on still.
            task.cancel()
        raise
