"""`serve --workers`: what is refused before anything starts, and what the edge is told."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from services import workers
from services.__main__ import main
from services.common.service import StartupError
from services.launcher import check_workers, resolve_targets
from services.settings import MOST_WORKERS, Settings
from services.workers import Worker, Workers, merged

DATABASE = "postgresql://somebody@127.0.0.1/omnihub"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the defaults."""
    config = tmp_path / "omnihub.toml"
    config.write_text("")
    monkeypatch.setenv("OMNIHUB_CONFIG", str(config))


@pytest.mark.usefixtures("alone")
def test_workers_without_postgresql_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "PostgreSQL" in said
    assert "OMNIHUB_DATABASE_URL" in said


@pytest.mark.usefixtures("alone")
def test_verify_says_so_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMNIHUB_WORKERS", "2")
    assert main(["config", "verify"]) == 2
    assert "PostgreSQL" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("count", ["0", "-1", "many", str(MOST_WORKERS + 1)])
def test_a_number_that_cannot_be_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--workers={count}"])
    assert ended.value.code == 2
    assert f"a number from 1 to {MOST_WORKERS}" in capsys.readouterr().err


@pytest.mark.parametrize("targets", ["chat", "auth,billing,edge"])
def test_workers_need_chat_and_an_edge(targets: str) -> None:
    settings = Settings(workers=2, database_url=DATABASE)
    with pytest.raises(StartupError, match="--workers needs the targets chat and edge"):
        check_workers(settings, resolve_targets(targets.split(",")))
    check_workers(settings, resolve_targets(["chat", "edge"]))


def test_one_worker_needs_nothing() -> None:
    check_workers(Settings(workers=1), resolve_targets(["auth"]))


def test_sockets_are_in_the_data_directory_when_their_path_is_short(tmp_path: Path) -> None:
    short = Path("/tmp/data")
    assert Workers(2, ["router"], ["auth"], short).http_addresses == (
        "unix:/tmp/data/workers/1.http,unix:/tmp/data/workers/2.http"
    )
    elsewhere = Workers(2, ["router"], ["auth"], tmp_path / ("long" * 30)).grpc_addresses
    assert "longlong" not in elsewhere
    Path(elsewhere.partition(",")[0].removeprefix("unix:")).parent.rmdir()


def test_only_this_user_opens_the_folder_of_the_sockets(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    folder.chmod(0o777)
    both = Workers(2, ["router"], ["auth"], tmp_path)
    both.make_folder()
    made = Path(both.core_address.removeprefix("unix:")).parent
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


async def test_a_worker_that_cannot_be_started_again_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory or processes have run out, for a while."""
    process = Mock(returncode=1, wait=AsyncMock(return_value=1))
    launched = [process, OSError("no more processes"), process]
    running = asyncio.Event()

    async def launch(*_: object, **__: object) -> Mock:
        outcome = launched.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        if not launched:
            running.set()
            process.wait = asyncio.Event().wait
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", launch)
    monkeypatch.setattr(workers, "FIRST_BACKOFF_S", 0)
    monkeypatch.setattr(Worker, "_problem", AsyncMock(return_value=""))
    worker = Worker(1, tmp_path, ["serve"], {})
    await worker.start()
    async with asyncio.timeout(60):
        await running.wait()
    await worker.stop(1)


def test_metrics_of_all_workers_become_one_answer() -> None:
    text = '# HELP asked_total Asked.\n# TYPE asked_total counter\nasked_total{{model="m"}} {}\n'
    lines = merged({"1": text.format(3), "2": text.format(4)}).decode().splitlines()
    assert lines.count("# TYPE asked_total counter") == 1
    assert 'asked_total{model="m",worker="1"} 3.0' in lines
    assert 'asked_total{model="m",worker="2"} 4.0' in lines
