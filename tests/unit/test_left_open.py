"""A test that leaves something open fails itself, and is named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from services.common import sqlite
from tests.support.left_open import LeftOpen, watching


@pytest.fixture
def left() -> Iterator[LeftOpen]:
    with watching() as seen:
        seen.test = "test_forgetful"
        yield seen


def test_a_connection_without_an_end_is_named_once(left: LeftOpen, tmp_path: Path) -> None:
    async def forget() -> sqlite.Connection:
        connection = await sqlite.connect(str(tmp_path / "file.db"))
        assert left.at_end_of_test() == [], "its loop runs yet: a fixture may close it"
        return connection

    connection = asyncio.run(forget())
    try:
        left.test = "test_innocent"
        [found] = left.at_end_of_test()
        assert "left open by test_forgetful" in found
        assert "test_left_open.py" in found
        assert left.at_end_of_test() == []
    finally:
        connection.stop()
        connection._thread.join()


def test_a_client_without_an_end_is_named(left: LeftOpen) -> None:
    async def forget() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = asyncio.run(forget())
    try:
        [found] = left.at_end_of_test()
        assert "ClientSession" in found
    finally:
        session.detach()


def test_what_is_closed_is_not_named(left: LeftOpen, tmp_path: Path) -> None:
    async def close() -> sqlite.Connection:
        connection = await sqlite.connect(str(tmp_path / "file.db"))
        await connection.close()
        return connection

    assert asyncio.run(close()) is not None
    assert left.at_end_of_test() == []
