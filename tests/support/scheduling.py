"""Which tests stay together when several processes run them: those that share a running suite."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_SHAPE = re.compile(r"^tests/e2e/.*\[(one|many)\b")


class TogetherScheduling(LoadScopeScheduling):
    """Gives all end-to-end tests of one shape to one worker, every other test to whoever is free.

    xdist's own marks for this (`--dist loadgroup`) have no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        shape = _SHAPE.match(nodeid)
        return nodeid if shape is None else f"e2e-{shape[1]}"
