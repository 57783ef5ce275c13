"""Cells of the adapter test matrix: which behaviour is shown for which adapter."""

from __future__ import annotations

from typing import Any

import pytest


def cells(row: int, *adapters: str) -> list[Any]:
    """Return the adapters as parameters, each marked as the cell of this row."""
    return [
        pytest.param(adapter, id=adapter, marks=pytest.mark.matrix(row=row, adapter=adapter))
        for adapter in adapters
    ]
