"""Keeps the cores awake: `python -m bench.spin CORE` burns what nobody else wants of one core.

Between two requests at a low rate a core falls asleep, and a virtual one takes long to wake: that, and not
the subject, then makes up the latency. Under SCHED_IDLE the spinner gives way to whatever else can run.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Ends with the harness, also when that is killed.
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass
