"""aimock: an independent fake of the vendors' APIs, pinned in package-lock.json, run by Node."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.postgresql import free_port

_HERE = Path(__file__).parent
_FOLDER = Path(__file__).parents[3] / ".setup" / "aimock"
_PROGRAM = _FOLDER / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
_START_S = 20


def install() -> Path:
    """Install the pinned version into a folder of the project, once for all test processes."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (_HERE / "package-lock.json").read_bytes()
        done = _FOLDER / "installed"
        if not done.exists() or done.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(_HERE / name, _FOLDER / name)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=_FOLDER, check=True, timeout=110)
            done.write_bytes(wanted)
    return _PROGRAM


@asynccontextmanager
async def running_aimock(fixtures: Sequence[Mapping[str, Any]], folder: Path) -> AsyncIterator[str]:
    """Run it with these fixtures, written into `folder`, and return its URL."""
    program = await asyncio.to_thread(install)
    path = folder / "fixtures.json"
    path.write_text(json.dumps({"fixtures": list(fixtures)}))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "node",
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
