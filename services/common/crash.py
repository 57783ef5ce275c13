"""Named places at which a test can end the process, as a power cut would. Off unless a test arms one."""

from __future__ import annotations

import os
import signal


class CrashPoints:
    """Ends the process at the armed place: `place`, `place:count` for the `count`th time it is passed.

    `place:count:stop` stops the process instead (SIGSTOP), so that a test can take something else away
    at exactly that moment and let it go on (SIGCONT).
    """

    def __init__(self, armed: str = "") -> None:
        place, _, rest = armed.partition(":")
        count, _, how = rest.partition(":")
        self._place = place
        self._left = int(count or 1)
        self._stop = how == "stop"

    def pass_by(self, place: str) -> None:
        """Say that the code is at `place`."""
        if place == self._place:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGSTOP if self._stop else signal.SIGKILL)
