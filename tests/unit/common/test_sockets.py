"""Where Unix sockets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.sockets import PATH_LIMIT, remove_folder, socket_folder


def test_sockets_are_in_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert socket_folder(Path("data"), "edge", "http.sock") == tmp_path / "data" / "edge"


@pytest.mark.parametrize("name", ["x" * PATH_LIMIT, "chat,edge"])
def test_a_path_that_is_no_address_is_replaced(tmp_path: Path, name: str) -> None:
    folder = socket_folder(tmp_path / name, "edge", "http.sock")
    try:
        assert folder.is_dir()
        assert "," not in str(folder)
        assert len(str(folder / "http.sock")) <= PATH_LIMIT
    finally:
        remove_folder(folder, tmp_path / name)
    assert not folder.exists()
