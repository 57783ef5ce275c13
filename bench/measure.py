"""CPU time and memory of a process and all its descendants, read from /proc."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SETTLE_INTERVAL_S = 0.25
SETTLE_LIMIT_S = 5.0
QUIET_CORES = 0.05


@dataclass(frozen=True)
class ProcessStat:
    """The part of /proc/<pid>/stat that is needed; times in clock ticks."""

    pid: int
    program: str
    parent: int
    session: int
    cpu_ticks: int
    start_ticks: int


def read_stat(pid: int) -> ProcessStat | None:
    """Return the state of a process, or None when it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may itself hold spaces and parentheses.
    end = text.rindex(")")
    program, fields = text[text.index("(") + 1 : end], text[end + 2 :].split()
    # utime and stime of all threads, ended ones too, and the same of children that were waited for.
    ticks = sum(int(field) for field in fields[11:15])
    return ProcessStat(pid, program, int(fields[1]), int(fields[3]), ticks, int(fields[19]))


def all_stats() -> Iterator[ProcessStat]:
    """Yield the state of every process of the machine."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))):
            yield stat


class ProcessTree:
    """A process that leads its own session, and everything it started.

    Members are found by parent and by session: orphans and children with a session of their own count.
    """

    def __init__(self, root: int) -> None:
        self.root = root

    def members(self) -> list[ProcessStat]:
        """Return the living members, the root first."""
        stats = list(all_stats())
        found = {self.root} | {stat.pid for stat in stats if stat.session == self.root}
        grown = True
        while grown:
            children = {stat.pid for stat in stats if stat.parent in found}
            grown = not children <= found
            found |= children
        return sorted((stat for stat in stats if stat.pid in found), key=lambda stat: stat.start_ticks)

    def cpu_seconds(self) -> float:
        """Return the CPU time used since the start: user and system, all threads, ended children included."""
        return sum(stat.cpu_ticks for stat in self.members()) / TICKS_PER_SECOND

    def cpu_by_program(self) -> dict[str, float]:
        """Return the CPU time in seconds by the name of the program, ended children with their parents."""
        ticks: dict[str, int] = {}
        for stat in self.members():
            name = "python" if stat.program.startswith("python") else stat.program
            ticks[name] = ticks.get(name, 0) + stat.cpu_ticks
        return {name: count / TICKS_PER_SECOND for name, count in ticks.items()}

    def memory_bytes(self) -> int:
        """Return the proportional set size: shared pages are divided among the processes that share them."""
        return sum(proportional_set_size(stat.pid) for stat in self.members())

    def memory_by_program(self) -> dict[str, int]:
        """Return the proportional set size in bytes by the name of the program."""
        sizes: dict[str, int] = {}
        for stat in self.members():
            sizes[stat.program] = sizes.get(stat.program, 0) + proportional_set_size(stat.pid)
        return sizes

    async def settle(self) -> None:
        """Wait until the tree is idle, at most SETTLE_LIMIT_S.

        Work put off until after the answer (logs, accounting) belongs to the requests that caused it.
        """
        for _ in range(round(SETTLE_LIMIT_S / SETTLE_INTERVAL_S)):
            before = self.cpu_seconds()
            await asyncio.sleep(SETTLE_INTERVAL_S)
            if self.cpu_seconds() - before <= QUIET_CORES * SETTLE_INTERVAL_S:
                return


def proportional_set_size(pid: int) -> int:
    """Return the Pss of one process in bytes; 0 when it is gone."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def machine_cpu_seconds() -> tuple[float, float]:
    """Return the busy and the stolen CPU seconds of the machine since boot, summed over all cores."""
    ticks = [int(field) for field in (PROC / "stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _wait, interrupt, soft_interrupt, steal = ticks[:8]
    busy = user + nice + system + interrupt + soft_interrupt
    return busy / TICKS_PER_SECOND, steal / TICKS_PER_SECOND


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the load generators it has waited for."""
    return sum(os.times()[:4])
