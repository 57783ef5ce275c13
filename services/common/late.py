"""Modules that most processes never use, loaded when one of them does.

    if TYPE_CHECKING:
        import jsonschema
    else:
        jsonschema = late("jsonschema")

tests/architecture/test_start_up.py says what a process that serves may load at its start.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Late:
    """Stands for a module until somebody asks it for something; safe in threads, as `import` is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def late(name: str) -> Any:
    """Return what stands for the module `name`."""
    return _Late(name)
