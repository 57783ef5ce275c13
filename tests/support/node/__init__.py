"""The vendors' clients for Node: one small program each, driven with JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.npm import install

_HERE = Path(__file__).parent
_LIMIT_S = 60


async def run_client(
    program: str, url: str, key: str, jobs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run `openai` or `anthropic` against a facade and return what each job saw, in order."""
    folder = await asyncio.to_thread(install, _HERE)
    script = folder / f"{program}.mjs"
    # Beside node_modules, where imports are looked for.
    await asyncio.to_thread(shutil.copy, _HERE / script.name, script)
    process = await asyncio.create_subprocess_exec(
        "node",
        str(script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    asked = json.dumps({"url": url, "key": key, "jobs": list(jobs)}).encode()
    async with asyncio.timeout(_LIMIT_S):
        told, complaints = await process.communicate(asked)
    assert process.returncode == 0, complaints.decode()
    seen: list[dict[str, Any]] = json.loads(told)
    return seen
