"""aimock: an independent fake of the vendors' APIs, pinned in package-lock.json, run by Node."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.npm import install
from tests.support.ports import free_port

_PROGRAM = Path("node_modules") / "@copilotkit" / "aimock" / "dist" / "cli.js"
_START_S = 20


@asynccontextmanager
async def running_aimock(fixtures: Sequence[Mapping[str, Any]], folder: Path) -> AsyncIterator[str]:
    """Run it with these fixtures, written into `folder`, and return its URL."""
    program = (await asyncio.to_thread(install, Path(__file__).parent)) / _PROGRAM
    path = folder / "fixtures.json"
    path.write_text(json.dumps({"fixtures": list(fixtures)}))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "node",
        *("--require", str(Path(__file__).with_name("keep_alive.cjs"))),
        str(program),
        *("--port", str(port), "--fixtures", str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            while b"listening on" not in (line := await process.stdout.readline()):
                assert line, "aimock ended before it listened"
        reader = asyncio.create_task(process.stdout.read())  # Or its pipe would fill up.
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()
    await reader
