"""What a start costs, Envoy included. On a quiet machine: ready in under 3 s, under 300 MiB."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.e2e.test_shutdown import descendants
from tests.support.deployment import running_suite
from tests.support.suite import Suite
from tests.support.upstream import Upstream

# Beside other tests a clock says little; CPU says more, though that too grows on a busy machine.
READY_WITHIN_S = 45.0
CPU_S = 7.0
MEMORY_MIB = 300
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: list[int]) -> float:
    """Return user and system time of processes, and of children they have waited for."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field) for stat in stats for field in stat[11:15]) / TICKS_PER_SECOND


def memory_mib(pids: list[int]) -> float:
    """Return the proportional set size of processes."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cost(suite: Suite) -> tuple[float, float, float]:
    """Start it; return seconds until it was ready, CPU seconds until then, and memory."""
    began = time.monotonic()
    suite.start()
    ready_s = time.monotonic() - began
    root = suite.processes["all"].pid
    pids = [root, *descendants(root)]
    return ready_s, cpu_seconds(pids), memory_mib(pids)


def test_a_first_and_a_second_start(tmp_path: Path, upstream: Upstream) -> None:
    with running_suite(tmp_path, upstream, start=False, fresh=True) as suite:
        for start in ("first", "second"):
            ready_s, cpu_s, used_mib = cost(suite)
            assert ready_s < READY_WITHIN_S, start
            assert cpu_s < CPU_S, start
            assert used_mib < MEMORY_MIB, start
            assert not any(suite.stop().values())


def test_what_is_counted_is_there() -> None:
    """A sum over nothing would always be small."""
    assert memory_mib([os.getpid()]) > 10
    assert cpu_seconds([os.getpid()]) > 0
