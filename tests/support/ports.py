"""Ports for what tests start: below those the kernel hands out, and never one that was promised already.

A port that is only looked at is free until somebody else looks at it too. So each worker of a test run has
a share of its own and goes round in it: a port comes up again only after all others.
"""

from __future__ import annotations

import os
import random
import socket

_ALL = range(20_000, 32_000)
# More workers than this would share; two worker numbers apart by it are not seen on one machine.
_SHARES = 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_OURS = _ALL[_WORKER % _SHARES :: _SHARES]
# Another run on this machine most likely begins elsewhere.
_next = random.randrange(len(_OURS))


def free_port() -> int:
    """Return a loopback port nobody listens on. Raises RuntimeError when there is none."""
    global _next
    for _ in _OURS:
        _next = (_next + 1) % len(_OURS)
        port = _OURS[_next]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {_ALL.start}..{_ALL.stop}")
