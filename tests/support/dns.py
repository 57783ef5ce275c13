"""A name server on loopback whose answers a test chooses, and a resolver that asks it."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import struct


class NameServer(asyncio.DatagramProtocol):
    """Answers A queries: each name has a list of answers, given one after the other; the last one stays."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]

    def stop(self) -> None:
        """Stop."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer one query."""
        name, question = _question(data)
        self.asked.append(name)
        answers = self.names.get(name, [])
        addresses = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else []
        flags = 0x8180 if addresses else 0x8183
        header = data[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + ipaddress.IPv4Address(each).packed
            for each in addresses
        )
        assert self._transport is not None
        self._transport.sendto(header + question + records, address)

    async def lookup(self, host: str, port: int) -> list[str]:
        """Ask this server over UDP. Raises OSError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        class Asking(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
                answer.set_result(data)

        transport, _ = await loop.create_datagram_endpoint(Asking, remote_addr=("127.0.0.1", self.port))
        try:
            labels = b"".join(bytes([len(part)]) + part.encode() for part in host.split("."))
            header = secrets.token_bytes(2) + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0)
            transport.sendto(header + labels + b"\0" + struct.pack(">HH", 1, 1))
            async with asyncio.timeout(5):
                data = await answer
        finally:
            transport.close()
        count = struct.unpack(">H", data[6:8])[0]
        if not count:
            raise OSError(f"no address of {host}")
        return [str(ipaddress.IPv4Address(data[-16 * index - 4 :][:4])) for index in range(count)]


def _question(data: bytes) -> tuple[str, bytes]:
    labels, place = [], 12
    while size := data[place]:
        labels.append(data[place + 1 : place + 1 + size].decode())
        place += size + 1
    return ".".join(labels), data[12 : place + 5]
