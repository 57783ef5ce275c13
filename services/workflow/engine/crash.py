"""Named places at which a test can end the process, as a power cut would. Off unless a test arms one."""

from __future__ import annotations

import os


class CrashPoints:
    """Ends the process at the armed place, the `count`th time it is passed."""

    def __init__(self, armed: str) -> None:
        place, _, count = armed.partition(":")
        self._place = place
        self._left = int(count or 1)

    def pass_by(self, place: str) -> None:
        """Say that the code is at `place`."""
        if place == self._place:
            self._left -= 1
            if self._left == 0:
                os._exit(86)
