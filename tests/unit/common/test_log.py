"""Lines about requests are written together, in order, complete, and without a secret in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from typing import Any

import pytest

from services.common import log
from services.common.log import RequestEvent, RequestLines
from services.common.rpc import Identity


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a process with JSON logs has written."""
    file = io.StringIO()
    monkeypatch.setattr(log, "_request_lines", RequestLines(file))
    return file


def written(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


async def test_a_line_says_all_of_its_request(output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "WRITE_AFTER_S", 0)
    event = RequestEvent("http", "POST /v1/x")
    event.identify("req_1", Identity(organisation_id="org_1", key_id="key_1", token="secret"), "00-trace")
    event.fields["input_tokens"] = 3
    event.finish("OK")
    event.finish("CANCELLED")
    assert output.getvalue() == ""
    async with asyncio.timeout(60):
        while not output.getvalue():  # noqa: ASYNC110 - a timer of the loop writes it
            await asyncio.sleep(0)
    [line] = written(output)
    assert line.pop("duration_ms") >= 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "name": "POST /v1/x",
        "request_id": "req_1",
        "outcome": "OK",
        "organisation_id": "org_1",
        "key_id": "key_1",
        "traceparent": "00-trace",
        "input_tokens": 3,
        "event": "http",
        "level": "info",
    }


async def test_a_full_batch_is_written_at_once(output: io.StringIO) -> None:
    for number in range(log.BATCH + 1):
        RequestEvent("http", str(number)).finish("OK")
    assert [line["name"] for line in written(output)] == [str(number) for number in range(log.BATCH)]


async def test_other_records_come_behind_what_waits(output: io.StringIO) -> None:
    lines = log._request_lines
    assert lines is not None
    handler = logging.StreamHandler(lines)
    RequestEvent("http", "first").finish("OK")
    handler.emit(logging.LogRecord("x", logging.ERROR, "", 0, "second", None, None))
    first, second = output.getvalue().splitlines()
    assert json.loads(first)["name"] == "first"
    assert second == "second"


def test_without_a_loop_a_line_is_written_at_once(output: io.StringIO) -> None:
    RequestEvent("http", "alone").finish("OK")
    assert [line["name"] for line in written(output)] == ["alone"]


async def test_a_record_of_another_thread_leaves_the_timers_of_the_loop_alone(
    output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop of a process is not safe for that."""
    monkeypatch.setattr(log, "WRITE_AFTER_S", 0)
    lines = log._request_lines
    assert lines is not None
    threads: set[int] = set()
    cancel = asyncio.TimerHandle.cancel

    def recorded(handle: asyncio.TimerHandle) -> None:
        threads.add(threading.get_ident())
        cancel(handle)

    monkeypatch.setattr(asyncio.TimerHandle, "cancel", recorded)
    lines.add("http", {"name": "first"})
    thread = threading.Thread(target=lines.write, args=("{}\n",))
    thread.start()
    thread.join()
    assert [line.get("name") for line in written(output)] == ["first", None]
    assert threads <= {threading.get_ident()}
    lines.add("http", {"name": "second"})
    async with asyncio.timeout(60):
        while len(written(output)) < 3:  # noqa: ASYNC110 - a timer of the loop writes it
            await asyncio.sleep(0)


def test_a_loop_that_has_ended_is_not_waited_for(output: io.StringIO) -> None:
    async def ask(name: str) -> None:
        RequestEvent("http", name).finish("OK")

    asyncio.run(ask("first"))
    RequestEvent("http", "second").finish("OK")
    assert [line["name"] for line in written(output)] == ["first", "second"]
