"""A process that runs an edge until it is killed: `python -m tests.support.edge_parent DATA_DIR PORT`."""

import asyncio
import sys
from pathlib import Path

from tests.support.edge import make_edge


async def main() -> None:
    edge = make_edge(Path(sys.argv[1]), int(sys.argv[2]))
    await edge.start()
    print("ready", flush=True)  # noqa: T201
    await asyncio.Event().wait()


asyncio.run(main())
