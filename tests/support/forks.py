"""Processes that begin with everything loaded: as separate as others, in half the time.

They come from one process that has imported the whole suite and done nothing else; each gets its own session,
directory, environment and output. What a start itself costs or needs is tested with fresh interpreters.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "gen")])


@cache
def loaded() -> ForkServerContext:
    """Return the process that has loaded everything, from which others come."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


def importable() -> AbstractContextManager[Any]:
    """Let a new interpreter find what pytest finds."""
    return patch.dict(os.environ, PYTHONPATH=PYTHONPATH)


class Forked:
    """A running `python -m services`, with what tests use of `subprocess.Popen`."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        given = (list(arguments), str(folder), dict(environment), str(log))
        self._process = loaded().Process(target=_main, args=given, daemon=True)
        # Two threads that ask how it has ended would get the code and an invented 255.
        self._asking = threading.Lock()
        with importable():
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return how it has ended; None while it runs."""
        with self._asking:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return how it was. Raises TimeoutExpired."""
        with self._asking:
            self._process.join(timeout)
            code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("services", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _main(arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    warnings.simplefilter("default")
    from services.__main__ import main

    status = main(arguments)
    # What an interpreter that ends does, this kind of process does not.
    gc.collect()
    atexit._run_exitfuncs()
    sys.exit(status)
