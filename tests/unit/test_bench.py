"""The arithmetic of the benchmark harness; the servers themselves are run by `python -m bench --quick`."""

import asyncio
import itertools
import json
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from bench.__main__ import parse
from bench.client import Answer, constant_rate, drained, percentile, visit
from bench.errors import BenchError
from bench.load import check_answer, lua_script, require_loopback
from bench.measure import ProcessTree
from bench.measures import Measure, Measured, Plan, Tools
from bench.payload import FIRST_PIECE, KINDS, STATIC, VARIANT, Kind, Target
from bench.processes import Ports
from bench.regression import ratio
from bench.report import Report, read, write
from bench.results import Results
from bench.run import Bench, Sample, awake, families, only_run
from bench.scenarios import SCENARIOS, Case
from bench.subjects import SUBJECTS
from bench.subjects.base import Setup, variants
from bench.subjects.omnihub import configuration
from bench.targets import verdicts
from bench.upstream import Upstream, upstream_path


def sample(subject: str, number: int, cpu: float, p99: float) -> Sample:
    values = {"cpu_us": cpu, "last_byte_p50_ms": p99 / 2, "last_byte_p99_ms": p99}
    return Sample("latency", 0, subject, number, values, {"last_byte": [p99 / 2, p99]})


def samples(*added_p99_ms: float) -> list[Sample]:
    found = []
    for number, added in enumerate(added_p99_ms):
        found += [sample("direct", number, 5, 1), sample("envoy", number, 100, 21)]
        found += [sample("omnihub", number, 1500, 1 + added)]
    return found


def results(*added_p99_ms: float) -> Results:
    return Results(samples(*added_p99_ms))


def test_percentile_is_the_smallest_value_not_exceeded_by_that_share():
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([7.0], 99) == 7


def test_added_latency_and_ratios_are_taken_within_each_round():
    found = results(1, 2, 4)
    name = "added_last_byte_p99_ms"
    assert found.measure("latency", 0, "omnihub", name).median == 2
    assert found.ratio("latency", name, "envoy", "omnihub").median == 10
    assert found.ratio("latency", "cpu_us", "omnihub", "envoy").median == 15
    assert found.measure("latency", 0, "direct", name) is None


def test_the_rarest_percentile_is_taken_over_all_rounds():
    assert results(1, 2, 4).rare("latency", "omnihub", "last_byte") == 4
    assert results(1, 2, 4).rare("latency", "direct", "last_byte") is None


def test_a_difference_that_drowned_in_noise_gives_no_ratio_and_no_verdict():
    found = results(1, -0.1, 1)
    assert found.ratio("latency", "added_last_byte_p99_ms", "omnihub", "envoy") is None
    assert [each.met for each in verdicts(found) if "p99" in each.label] == [None]


def test_targets_can_be_met_and_missed():
    assert [each.met for each in verdicts(results(10, 90)) if "p99" in each.label] == [True]
    assert [each.met for each in verdicts(results(110, 190)) if "p99" in each.label] == [False]


def test_growth_is_judged_against_the_smallest_size():
    grown = [
        Sample("growth-models", size, "omnihub", 0, {"cpu_us": cpu})
        for size, cpu in ((10, 100.0), (100, 110.0), (1000, 130.0))
    ]
    assert [each.met for each in verdicts(Results(grown))] == [True, False]


def test_growth_of_several_subjects_is_reported_row_by_row():
    plan = Plan(["envoy", "omnihub"], ["growth-connections"], rounds=1)
    grown = [
        Sample("growth-connections", size, subject, 0, {"cpu_us": cpu / size})
        for subject, cpu in (("envoy", 100.0), ("omnihub", 800.0))
        for size in (1, 4, 16)
    ]
    text = Report(plan, grown, {"cpu": "none"}).markdown()
    assert "| envoy | 100 | 25 | 6 | 0.25 | 0.06 |" in text
    assert "| omnihub | 800 | 200 | 50 | 0.25 | 0.06 |" in text


def test_the_report_says_what_failed_and_how_many_rounds_its_figures_are_of():
    found = samples(*[40] * 3)
    found = [each for each in found if (each.subject, each.round) != ("omnihub", 2)]
    found += [Sample("latency", 0, "omnihub", 2, failure="no | answer"), Sample("chat", 0, "omnihub", -1)]
    found[-1].failure = "does not start"
    plan = Plan(["direct", "envoy", "omnihub"], ["latency", "chat"], rounds=3)
    text = Report(plan, found, {}).markdown()
    assert "| omnihub | latency | of 2 of 3 rounds | no / answer |" in text
    assert "| omnihub | chat | none | does not start |" in text
    assert "## Failed" not in Report(plan, samples(40), {}).markdown()


def test_a_report_comes_back_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.report.RESULTS", tmp_path)
    chats = [
        Sample("chat", 0, name, 0, {"cpu_us": cpu, "memory_mib": cpu, "requests_per_s": 1e6 / cpu})
        for name, cpu in (("envoy", 60.0), ("omnihub", 720.0))
    ]
    found = [*samples(40), *chats, Sample("chat", 0, "litellm", 1, failure="no answer")]
    report = Report(Plan(["direct", "envoy", "omnihub"], ["chat", "latency"]), found, {"cpu": "one"})
    data, text = itertools.islice(write(report, found), 2)
    assert read(data).markdown() == report.markdown() == text.read_text()
    assert "| omnihub | 1389 | 720 | - | - | 20.00 | 40.00 | 720 |" in report.short()


def test_the_short_form_compares_the_cheapest_rounds():
    rounds = {"envoy": (60, 90, 70), "omnihub": (1200, 720, 2000)}
    found = [
        Sample("chat", 0, name, number, {"cpu_us": cpu})
        for name, cpus in rounds.items()
        for number, cpu in enumerate(cpus)
    ]
    assert ratio(Results(found)) == 12
    with pytest.raises(BenchError, match="not measured"):
        ratio(Results([*found, Sample("chat", 0, "omnihub", 2, failure="no answer")]))
    with pytest.raises(BenchError, match="no CPU time"):
        ratio(Results(found[:3]))


def test_the_report_says_why_a_subject_has_no_figures():
    plan = Plan(["direct", "envoy", "omnihub"], ["latency", "cache-hit"], rounds=2)
    failed = Sample("cache-hit", 0, "omnihub", -1, failure="changed the answer")
    text = Report(plan, [*samples(1, 2), failed], {"cpu": "none"}).markdown()
    assert "| omnihub | failed: changed the answer |" in text
    assert f"| envoy | cannot: {SUBJECTS['envoy'].unable['cache-hit']} |" in text
    assert "| omnihub | 1.500 (1.000 to 2.000) |" not in text
    assert "added p99 ms" in text


@pytest.mark.parametrize("kind", STATIC, ids=lambda kind: kind.name)
def test_each_kind_recognises_its_own_answer_and_no_other(kind: Kind):
    answer = KINDS["chat"].answer() if kind.name == "translated" else kind.answer()
    kind.check(answer)
    for other in STATIC:
        if other.answer() not in (answer, kind.answer()):
            with pytest.raises((ValueError, LookupError, TypeError)):
                kind.check(other.answer())


def test_a_stream_that_lost_its_end_or_a_chunk_is_not_the_known_answer():
    kind = KINDS["stream50"]
    events = kind.answer().split("\n\n")
    for broken in (events[:-2], events[:5] + events[6:], events[:-3] + events[-2:]):
        with pytest.raises((ValueError, LookupError)):
            kind.check("\n\n".join(broken) + "\n\n")


def test_load_goes_only_to_this_machine():
    with pytest.raises(BenchError):
        require_loopback(Target("http://192.0.2.1/v1/chat/completions", ""))


def test_requests_take_their_variants_in_turn_from_all_over_the_range():
    assert variants(Setup()) == ()
    assert variants(Setup(models=3)) == (0, 1, 2)
    assert len(variants(Setup(keys=100_000))) == 1000
    assert variants(Setup(keys=100_000))[-1] == 99_900
    assert len(variants(Setup(keys=100_000, all_keys=True))) == 100_000
    target = Target("http://127.0.0.1/", "", {"Authorization": f"Bearer k{VARIANT}"}, (0, 10, 20))
    assert target.variant(10).headers == {"Authorization": "Bearer k000010"}
    assert "count, step, at = 3, 10, 2" in lua_script(target, first=5)


def answered(*parts: bytes) -> tuple[Answer, list[bool]]:
    answer = Answer()
    return answer, [answer.add(part, float(number)) for number, part in enumerate(parts, 1)]


def test_an_answer_ends_by_its_length_or_with_its_last_chunk():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    assert answered(head[:20], head[20:], b"ab", b"cd")[1] == [False, False, False, True]
    head = b"HTTP/1.1 200 OK\r\nx-content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n"
    token = FIRST_PIECE.encode()
    answer, ends = answered(head, b"5\r\nrole:\r\n", b"6\r\n" + token + b"\r\n", b"0\r\n\r\n")
    assert ends == [False, False, False, True]
    assert answer.first_token_at == 3
    with pytest.raises(BenchError):
        answered(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")[0].require_success()


class Server:
    """Answers every request with the same bytes, at `target`."""

    def __init__(self, answer: bytes) -> None:
        self.requests = 0
        self._answer = answer
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.target = Target(f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/", "{}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError):  # the client has left
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.requests += 1
                writer.write(self._answer)
        writer.close()
        await writer.wait_closed()


async def test_every_request_that_was_sent_is_answered_and_counted():
    async with Server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as server:
        found = await drained(server.target, 0.2, connections=3)
        assert found.requests == server.requests > 3
        before = server.requests
        latencies = await constant_rate(server.target, rate=100, seconds=0.2)
        await visit(replace(server.target, variants=tuple(range(30))), connections=3)
    assert len(latencies.last_byte) == 20
    assert server.requests - before == 24 + 30
    assert min(latencies.last_byte) > 0


async def test_an_answer_that_is_an_error_ends_the_load():
    async with Server(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno") as server:
        with pytest.raises(BenchError, match="503"):
            await drained(server.target, 0.2, connections=3)
        with pytest.raises(BenchError, match="503"):
            await check_answer(KINDS["chat"], server.target)


def test_scenarios_and_subjects_fit_together():
    for subject in SUBJECTS.values():
        assert subject.unable.keys() <= SCENARIOS.keys()
    everything = [case for cases in families(parse([])) for case in cases]
    assert {case.scenario for case in everything} == SCENARIOS.keys()
    assert len(everything) == sum(len(each.sizes) or 1 for each in SCENARIOS.values())


def test_the_command_line_selects_and_refuses():
    plan = parse(["--subjects", "omnihub,envoy", "--scenarios", "tools,chat", "--quick"])
    assert (plan.subjects, plan.scenarios, plan.rounds) == (
        ["direct", "envoy", "omnihub"],
        ["chat", "tools"],
        1,
    )
    for wrong in (["--subjects", "nobody"], ["--scenarios", "nothing"], ["--rounds", "100"]):
        with pytest.raises(SystemExit):
            parse(wrong)


def test_a_tree_counts_ended_children_and_children_in_another_session():
    script = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.2: pass'])\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        tree = ProcessTree(process.pid)
        assert len(tree.members()) == 2
        # The kernel counts in ticks of 10 ms, and each process may lose one.
        assert tree.cpu_seconds() >= 0.15
        assert tree.cpu_by_program() == {"python": pytest.approx(tree.cpu_seconds(), abs=0.03)}
        assert tree.memory_bytes() > 0
    finally:
        process.communicate()  # closing the input ends both


def test_the_configuration_of_omnihub_routes_each_kind_to_its_own_upstream():
    server = ProcessTree(1)
    upstream = Upstream(server, server, 18400, 18401, {})
    parsed = tomllib.loads(configuration(upstream, Setup(models=2)))
    assert parsed["models"]["bench-stream50"]["route"] == ["stream50/gpt-bench"]
    assert parsed["providers"]["stream50"]["base_url"] == "http://127.0.0.1:18400/stream50/v1"
    assert parsed["providers"]["translated"]["adapter"] == "anthropic"
    assert parsed["providers"]["paced50"]["base_url"] == "http://127.0.0.1:18401/paced50/v1"
    assert {"bench-model-000000", "bench-model-000001"} <= parsed["models"].keys()
    assert upstream_path(KINDS["translated"]) == "/translated/v1/messages"


def test_cores_are_kept_awake_only_when_asked_and_possible(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.run.LATENCY", tmp_path / "latency")
    with awake(False):
        assert not (tmp_path / "latency").exists()
    with awake(True):
        assert (tmp_path / "latency").read_bytes() == bytes(4)
    monkeypatch.setattr("bench.run.LATENCY", tmp_path / "nowhere" / "latency")
    with pytest.raises(BenchError, match="root"), awake(True):
        pass


def test_there_is_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.run.WORK", tmp_path / "work")
    with only_run(), pytest.raises(BenchError, match="another run"), only_run():
        pass
    with only_run():
        pass


class Hanging(Measure):
    """Breaks the server that it is measured at, once."""

    def __init__(self) -> None:
        self.hung = False

    async def run(self, tools: Tools, running: Any, number: int) -> Measured:
        if not self.hung:
            self.hung = running.broken = True
            raise BenchError("no answer")
        return Measured({})


class Asking(Measure):
    """Cannot be done at a server that is broken."""

    async def run(self, tools: Tools, running: Any, number: int) -> Measured:
        if running.broken:
            raise BenchError("it hangs")
        return Measured({})


class FakeServer:
    def __init__(self) -> None:
        self.broken, self.stopped, self.server = False, False, self

    def check(self) -> None:
        assert not self.stopped


async def test_who_failed_is_started_again_for_the_cases_that_follow(tmp_path, monkeypatch):
    servers: list[FakeServer] = []

    @asynccontextmanager
    async def start(_: Any) -> AsyncIterator[Any]:
        servers.append(FakeServer())
        yield servers[-1]
        servers[-1].stopped = True

    monkeypatch.setitem(SUBJECTS, "relay", replace(SUBJECTS["relay"], start=start))
    tools = Tools(Plan(["relay"], [], rounds=2), "wrk", tmp_path / "wrk.lua", None)  # type: ignore[arg-type]
    bench = Bench(tools, tmp_path, tmp_path, Ports())
    await bench.run([Case("hangs", 0, Setup(), Hanging()), Case("asks", 0, Setup(), Asking())])
    told = [(each.scenario, each.round, each.failure) for each in bench.samples]
    assert told == [("hangs", 0, "no answer"), ("asks", 0, ""), ("asks", 1, "")]
    assert [server.stopped for server in servers] == [True, True]


def test_the_plot_knows_every_subject():
    text = (Path(__file__).parents[2] / "bench" / "plot.py").read_text()
    styles = text.split("STYLES = ")[1].split("}\n")[0]
    assert [name for name in SUBJECTS if f'"{name}"' not in styles] == []


def test_package_locks_pin_every_package():
    for lock in (Path(__file__).parents[2] / "bench").glob("node-*/package-lock.json"):
        packages = json.loads(lock.read_text())["packages"]
        assert [name for name, package in packages.items() if name and "integrity" not in package] == []
