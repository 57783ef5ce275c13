"""Run by its path: asks the kernel to end this process together with its parent, then becomes a program.

    python -I -S exec_with_parent.py PARENT_PID PROGRAM ARGUMENT...

A program of its own, because a function between fork and exec is not safe beside gRPC's threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process, unless the parent is gone already."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the kernel knew of our wish.
    if os.getppid() != parent:
        sys.exit("the parent process has ended")
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
