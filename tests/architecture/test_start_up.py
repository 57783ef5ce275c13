"""Who serves does not wait for what other commands need."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
import services.__main__
others = ("services.tools", "services.commands", "services.router.evaluating", "services.billing.store")
print([name for name in others if name in sys.modules])
"""


def test_commands_are_loaded_only_when_they_are_named() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert loaded.stdout.strip() == "[]"
