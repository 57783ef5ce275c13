"""A wire to a server on this machine that can be cut, stalled and closed in one direction only.

Every fault tells how many connections it has hit: a test that injects nothing must not pass.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PIECE = 2**16
# Closing with this resets the connection instead of ending it.
RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Wire:
    """One connection: the client's side and the server's."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    ended: set[asyncio.StreamWriter] = field(default_factory=set)
    """Sides that have been told that nothing more comes."""


class FaultProxy:
    """Passes connections on to a port, until told otherwise."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.held_bytes = 0
        self._target = port
        self._wires: set[Wire] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything, and listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> int:
        """Reset all connections, as when a machine between the two ends loses its state."""
        wires = list(self._wires)
        for wire in wires:
            for side in (wire.client, wire.server):
                side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                side.transport.abort()
        return len(wires)

    def end(self, *, towards_client: bool) -> int:
        """Half-close: tell one side that nothing more comes, and go on passing on what it still sends."""
        hit = 0
        for wire in self._wires:
            side = wire.client if towards_client else wire.server
            if side not in wire.ended and not side.is_closing():
                wire.ended.add(side)
                side.write_eof()
                hit += 1
        return hit

    def stall(self) -> int:
        """Hold back everything in both directions, also of new connections. Nobody is told."""
        self._flowing.clear()
        return len(self._wires)

    def flow(self) -> int:
        """Go on, with what was held back. Returns how many bytes that was."""
        held, self.held_bytes = self.held_bytes, 0
        self._flowing.set()
        return held

    async def until_connected(self, count: int) -> None:
        """Wait until so many connections stand, both ways."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: sum(not wire.ended for wire in self._wires) >= count)

    async def until_connected_less_than(self, count: int) -> None:
        """Wait until less connections stand."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self._wires) < count)

    async def until_held(self) -> None:
        """Wait until a stall holds something back."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: self.held_bytes > 0)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            client.transport.abort()
            return
        wire = Wire(client, server)
        await self._note(wire, stands=True)
        try:
            await asyncio.gather(self._pump(wire, reader, server), self._pump(wire, there, client))
        finally:
            client.transport.abort()
            server.transport.abort()
            await self._note(wire, stands=False)

    async def _note(self, wire: Wire, *, stands: bool) -> None:
        async with self._changed:
            if stands:
                self._wires.add(wire)
            else:
                self._wires.discard(wire)
            self._changed.notify_all()

    async def _pump(self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one direction until its sender ends it."""
        try:
            while piece := await reader.read(PIECE):
                if not self._flowing.is_set():
                    async with self._changed:
                        self.held_bytes += len(piece)
                        self._changed.notify_all()
                    await self._flowing.wait()
                if writer not in wire.ended:
                    writer.write(piece)
                    await writer.drain()
            if writer not in wire.ended:
                writer.write_eof()
        except OSError:
            # Reset, by a side or by us: the other one learns of it too.
            wire.client.transport.abort()
            wire.server.transport.abort()


@asynccontextmanager
async def fault_proxy(port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy for the length of the context."""
    proxy = FaultProxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
