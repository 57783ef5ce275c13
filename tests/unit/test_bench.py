"""The arithmetic of the benchmark harness; the servers themselves are run by `python -m bench --quick`."""

import json
import subprocess
import sys
import tomllib

import pytest
from bench.report import Results

from bench.errors import BenchError
from bench.load import percentile, require_loopback
from bench.measure import ProcessTree
from bench.payload import CONTENT, completion, event_stream, target
from bench.run import Plan, Sample
from bench.subjects import omnihub_configuration


def sample(subject: str, number: int, cpu: float, p99: float) -> Sample:
    load = {"requests_per_second": 10.0, "cpu_us_per_request": cpu, "p50_ms": 1.0, "p99_ms": 1.0}
    constant = {"cpu_us_per_request": cpu, "p50_ms": p99 / 2, "p99_ms": p99}
    return Sample(number, subject, load, constant=constant, memory_mib=100.0)


def results(*added_p99_ms: float) -> Results:
    plan = Plan(["direct", "omnihub", "litellm"], rounds=len(added_p99_ms))
    samples = [sample("direct", number, 5, 1) for number in range(plan.rounds)]
    samples += [sample("omnihub", number, 100, 1 + added) for number, added in enumerate(added_p99_ms)]
    samples += [sample("litellm", number, 1500, 21) for number in range(plan.rounds)]
    return Results(plan, samples)


def test_percentile_is_the_smallest_value_not_exceeded_by_that_share():
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([7.0], 99) == 7


def test_added_latency_and_ratios_are_taken_within_each_round():
    found = results(1, 2, 4)
    assert found.measure("omnihub", "added_p99_ms").median == 2
    assert found.ratio("litellm", "omnihub", "added_p99_ms").median == 10
    assert found.ratio("litellm", "omnihub", "cpu_us_per_request").median == 15
    assert found.measure("direct", "added_p99_ms") is None


def test_a_difference_that_drowned_in_noise_gives_no_ratio():
    assert results(1, -0.1, 1).ratio("litellm", "omnihub", "added_p99_ms") is None


def test_load_goes_only_to_this_machine():
    with pytest.raises(BenchError):
        require_loopback(target("http://192.0.2.1/v1/chat/completions", "key", "model"))


def test_the_stream_adds_up_to_the_answer():
    data = [line.removeprefix("data: ") for line in event_stream().splitlines() if line]
    assert data.pop() == "[DONE]"
    choices = [choice for event in data for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == CONTENT
    assert json.loads(completion())["choices"][0]["message"]["content"] == CONTENT


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
        assert tree.memory_bytes() > 0
    finally:
        process.communicate()  # closing the input ends both


def test_the_configuration_of_omnihub_is_toml_with_two_routes():
    parsed = tomllib.loads(
        omnihub_configuration(
            {"bench-chat": "http://127.0.0.1:18400/v1", "bench-stream": "http://127.0.0.1:18400/stream/v1"}
        )
    )
    assert parsed["models"]["bench-chat"]["route"] == ["bench_chat/gpt-bench"]
    assert parsed["providers"]["bench_stream"]["base_url"] == "http://127.0.0.1:18400/stream/v1"
