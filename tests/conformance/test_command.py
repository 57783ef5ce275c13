"""`omnihub provider check` as authors run it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call
from services.common.rpc.server import GrpcServer
from services.providers.domain.clauses import CLAUSES
from tests.support.plugins import ROOT, GoodProvider, broken_clauses, serving, serving_suite, verdict
from tests.support.ports import free_port


async def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command in a folder with settings that are wrong: it needs none."""
    (folder / "omnihub.toml").write_text("nonsense = 1\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "provider", "check", *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


class NoUsage(GoodProvider):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        response = await super().chat(request, call)
        response.ClearField("usage")
        return response


async def test_a_breach_is_printed_with_its_clause(tmp_path: Path) -> None:
    async with serving(NoUsage()) as address:
        files = ("--json", "report.json", "--junit", "report.xml")
        status, output, errors = await run(tmp_path, address, "--only", "answers", *files)
    assert (status, errors) == (1, "")
    assert "FAIL  good  answers/report-usage  [ANSWER-3]" in output
    assert f"ANSWER-3: {CLAUSES['ANSWER-3']}" in output
    report = json.loads((tmp_path / "report.json").read_text())
    summary = report["summary"]
    last = f"{summary['passed']} passed, {summary['failed']} failed, {summary['skipped']} skipped"
    assert output.splitlines()[-1] == last
    failed = [check for check in report["checks"] if check["state"] == "fail"]
    assert failed[0]["clauses"] == {"ANSWER-3": CLAUSES["ANSWER-3"]}
    suite = ElementTree.parse(tmp_path / "report.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == str(summary["failed"])
    failure: Any = suite.find("testcase/failure")
    assert failure.get("type") == "ANSWER-3"


async def test_all_is_well(tmp_path: Path) -> None:
    async with serving(GoodProvider()) as address:
        status, output, errors = await run(tmp_path, address)
    assert (status, errors) == (0, "")
    assert " 0 failed, " in output.splitlines()[-1]


async def test_what_cannot_be_judged_says_what_to_do(tmp_path: Path) -> None:
    status, _, errors = await run(tmp_path, f"127.0.0.1:{free_port()}")
    assert status == 2
    assert "start the plugin first" in errors
    status, _, errors = await run(tmp_path, "localhost")
    assert status == 2
    assert "is not host:port, such as 127.0.0.1:7001" in errors


async def test_wrong_options_are_named(tmp_path: Path) -> None:
    async with serving(GoodProvider()) as address:
        for options, said in (
            (("--provider", "other"), "does not serve 'other'; it serves good"),
            (("--only", "nothing"), "no check begins with 'nothing'; groups: capabilities, answers"),
            (("--json", "/no/such/folder/report.json", "--only", "capabilities"), "No such file"),
        ):
            status, _, errors = await run(tmp_path, address, *options)
            assert status == 2
            assert said in errors


async def test_several_providers_and_a_model_need_a_provider(tmp_path: Path) -> None:
    from services.providers.settings import ProviderSettings

    async with serving_suite(second=ProviderSettings(adapter="local")) as address:
        results = await verdict(address, "capabilities")
        assert {result.provider for result in results} == {"local", "second"}
        status, _, errors = await run(tmp_path, address, "--model", "echo")
    assert status == 2
    assert "say with --provider whose model that is" in errors


async def test_a_server_that_says_it_does_not_serve_is_reported() -> None:
    server = GrpcServer(address := f"127.0.0.1:{free_port()}", gate=None)
    server.add(ProviderService, GoodProvider())
    await server.start()
    try:
        await server.set_serving(False)
        assert broken_clauses(await verdict(address, "capabilities")) == {"HEALTH-2"}
    finally:
        await server.stop(0)


async def test_models_that_do_not_work_are_not_guessed_at() -> None:
    class NoModels(GoodProvider):
        async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
            return pb.ListModelsResponse(models=[pb.ProviderModel(model="gone")])

    async with serving(NoModels()) as address:
        skipped = [result for result in await verdict(address, "answers") if result.state == "skip"]
        assert skipped
        assert "name one with --model" in skipped[0].detail
        results = await verdict(address, "answers", model="echo")
    assert not broken_clauses(results)
    assert any(result.state == "pass" for result in results)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:70000", "http://x:1", "a b:1"]
)
async def test_an_address_that_is_none(address: str) -> None:
    from services.providers.domain.plugin import InvalidPluginError

    with pytest.raises(InvalidPluginError, match="HOST:PORT"):
        await verdict(address)


async def test_who_serves_does_not_import_the_kit(tmp_path: Path) -> None:
    program = "import sys, services.__main__; print('services.providers.conformance' in sys.modules)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
    )
    output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"False\n")


async def test_the_command_is_in_the_help(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "--help"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
    )
    output, _ = await process.communicate()
    assert b"judge a plugin" in output
