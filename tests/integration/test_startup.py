"""What an operator is told when a process cannot start: one line that says what to change."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.db import Database
from services.common.rpc.server import GrpcServer
from services.common.service import StartupError
from services.edge.envoy import EdgeError
from services.listener import HttpListener
from services.router.settings import RouterSettings
from services.settings import SettingsError, load


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_a_grpc_address_in_use_is_named(taken: str) -> None:
    with pytest.raises(OSError, match=f"{taken}.*OMNIHUB_GRPC_LISTEN"):
        await GrpcServer(taken, None).start()


async def test_an_http_address_in_use_is_named(taken: str) -> None:
    async def problems() -> dict[str, str]:
        return {}

    listener = HttpListener(taken, [], problems, 1)
    with pytest.raises(OSError, match=f"{taken}.*OMNIHUB_HTTP_LISTEN"):
        await listener.start()
    await listener.stop()


async def test_a_database_that_cannot_be_reached_is_named(taken: str, tmp_path: Path) -> None:
    url = f"postgresql://nobody:secret@{taken.rpartition(':')[0]}:1/nothing"
    database = Database(url, "router")
    with pytest.raises(ConnectionError, match=r"the database 'router' cannot be used: .*refused") as error:
        await database.migrate(tmp_path)
    assert "secret" not in str(error.value)
    await database.close()


@pytest.mark.parametrize("amount", ["abc", "0", "-1"])
def test_a_lease_is_an_amount(amount: str) -> None:
    with pytest.raises(ValidationError, match="lease_minimum"):
        RouterSettings(lease_minimum=amount)


def test_an_address_has_a_port() -> None:
    with pytest.raises(SettingsError, match="http_listen"):
        load({"OMNIHUB_HTTP_LISTEN": "localhost"})


def test_what_envoy_cannot_do_is_told_like_everything_else() -> None:
    assert issubclass(EdgeError, StartupError)
