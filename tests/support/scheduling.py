"""Which tests stay together when several processes run them: those that share a running suite."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_SHAPE = re.compile(r"^tests/e2e/.*\[(one|many)\b")
# One suite for all cells of the matrix; decisions of all tests of a suite are decided again.
_SHARED = ("tests/integration/test_sdk_matrix.py", "tests/e2e/test_routing.py", "tests/e2e/test_workers.py")
# One broker for both: to start it takes as long as most of their tests.
_BROKER = ("tests/integration/jobs/test_bus.py", "tests/integration/jobs/test_chaos_short.py")


class TogetherScheduling(LoadScopeScheduling):
    """Gives tests that share a suite to one worker, every other test to whoever is free.

    xdist's own marks for this (`--dist loadgroup`) have no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in _SHARED:
            return file
        if file in _BROKER:
            return "broker"
        shape = _SHAPE.match(nodeid)
        return nodeid if shape is None else f"e2e-{shape[1]}"
