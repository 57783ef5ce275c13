"""A module that is loaded when it is first used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from services.common.late import late


def test_it_is_loaded_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seldom_used.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    seldom = late("seldom_used")
    assert "seldom_used" not in sys.modules
    assert seldom.answer == 42
    monkeypatch.delitem(sys.modules, "seldom_used")


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = late("json").nothing
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = late("no_such_module").anything
