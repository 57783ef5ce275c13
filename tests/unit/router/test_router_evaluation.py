"""Evaluation: checks of answers, intervals, verdicts, and what the command refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from services.router.domain.evaluation import (
    Answered,
    Prompt,
    WorkloadError,
    always,
    bootstrap,
    judge,
    passes,
)
from services.router.planning import evaluating, replaying
from tests.support.competence import MODELS, is_right


def prompts(count: int) -> list[Prompt]:
    """Return prompts that differ only by name."""
    check = {"kind": "exact", "value": "yes"}
    return [Prompt(f"p{number}", "chat", "en", "easy", "?", check, "yes") for number in range(count)]


@pytest.mark.parametrize(
    ("kind", "value", "answer", "right"),
    [
        ("exact", "Canberra", " canberra. ", True),
        ("exact", "Canberra", "It is Canberra", False),
        ("regex", r"group\s+by", "select x\nGROUP  BY y", True),
        ("regex", "a.*b", "ba", False),
        ("number", 5, "3 * 5 = 15, so x = 5", True),
        ("number", 5, "5 and then 6", False),
        ("number", 1648, "1,648", True),
        ("number", 16.7, "16.7 %", True),
        ("number", 5, "five", False),
        ("json", {"tool": "search"}, '```json\n{"tool": "search", "why": "x"}\n```', True),
        ("json", {"tool": "search"}, '{"tool": "mail"}', False),
        ("json", {"tool": "search"}, "search", False),
        ("json", {"tool": "search"}, "[1]", False),
    ],
)
def test_checks(kind: str, value: Any, answer: str, right: bool) -> None:
    assert passes(answer, {"kind": kind, "value": value}) is right


def test_the_shipped_workload_checks_itself() -> None:
    shipped = evaluating.read_workload(evaluating.WORKLOAD)
    assert len(shipped) >= 40
    assert not any(passes("I am not sure.", prompt.check) for prompt in shipped)
    assert {prompt.language for prompt in shipped} == {"en", "de", "fr", "es", "zh"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"check": {"kind": "feeling", "value": 1}}, "a check needs"),
        ({"check": {"kind": "exact"}}, "a check needs"),
        ({"sample": "no"}, "its own sample does not pass"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_prompt_is_named(change: dict[str, Any], text: str) -> None:
    good = {
        "name": "p1",
        "task": "chat",
        "language": "en",
        "difficulty": "easy",
        "text": "?",
        "check": {"kind": "exact", "value": "yes"},
        "sample": "yes",
    }
    assert Prompt.read(good).name == "p1"
    with pytest.raises(WorkloadError, match=text) as caught:
        Prompt.read({**good, **change})
    assert str(caught.value).startswith("p1: ")


def test_an_interval_holds_its_mean_and_narrows() -> None:
    few, many = bootstrap([0.0, 1.0] * 5, 1), bootstrap([0.0, 1.0] * 500, 1)
    assert few.low < few.mean == 0.5 < few.high
    assert many.high - many.low < few.high - few.low
    assert bootstrap([0.0, 1.0] * 5, 1) == few
    assert bootstrap([0.25] * 9, 1) == (0.25, 0.25, 0.25)


def test_a_choice_that_sees_the_prompt_beats_the_same_models_dealt_out_blindly() -> None:
    listed = prompts(40)
    # Each model can do one half; the policy knows which.
    answers = {
        "a": {each.name: Answered(number < 20, 1.0, 10) for number, each in enumerate(listed)},
        "b": {each.name: Answered(number >= 20, 3.0, 30) for number, each in enumerate(listed)},
    }
    knowing = judge("knowing", ["a"] * 20 + ["b"] * 20, "b", listed, answers, 1)
    assert (knowing.result.quality.mean, knowing.control.quality.mean) == (1.0, 0.5)
    assert knowing.proved
    assert knowing.result.cost.mean == pytest.approx(knowing.control.cost.mean) == 2.0
    assert knowing.saving == pytest.approx(1 / 3)
    assert knowing.quality_change.mean == 0.5
    blind = judge("blind", ["a", "b"] * 20, "b", listed, answers, 1)
    assert not blind.proved
    assert blind.gain.low < 0 < blind.gain.high
    wrong = judge("wrong", ["b"] * 20 + ["a"] * 20, "b", listed, answers, 1)
    assert wrong.gain.high < 0
    assert not wrong.proved
    assert always("always a", "a", listed, answers, 1).quality.mean == 0.5


def test_the_simulation_is_what_it_says() -> None:
    shipped = evaluating.read_workload(evaluating.WORKLOAD)
    right = {model: sum(is_right(model, prompt) for prompt in shipped) for model in MODELS}
    assert right["small"] < right["medium"] < right["large"]


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluating.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--policy", "frugal"), "--policy frugal: none of cheap, balanced, best"),
        (("--policy", "broken.json"), "--policy broken.json: Expecting"),
        (("--policy", "cheap", "--policy", "best", "--enable"), "--enable takes one --policy"),
        (("--workload", "broken.json"), "broken.json is no workload"),
        (("--workload", "one.json"), "two prompts at least"),
        ((), "Cannot connect"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_told(
    arguments: tuple[str, ...],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    shipped = json.loads(evaluating.WORKLOAD.read_text())
    (tmp_path / "one.json").write_text(json.dumps({"prompts": shipped["prompts"][:1]}))
    # The port of discard: nobody listens.
    assert evaluating.run("http://127.0.0.1:9", "omni_sk_x", parsed(*arguments)) == 2
    assert text in capsys.readouterr().err


def test_replay_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    replaying.add_arguments(parser)
    file = tmp_path / "router.db"
    assert replaying.run(f"sqlite:///{file}", file, parser.parse_args([])) == 2
    assert "check OMNIHUB_DATA_DIR" in capsys.readouterr().err
    file.touch()
    assert replaying.run(f"sqlite:///{file}", file, parser.parse_args([])) == 2
    assert "the decisions cannot be read" in capsys.readouterr().err
    assert parser.parse_args(["--from", "2025-01-31T12:00"]).since == 1_738_324_800_000
    with pytest.raises(SystemExit):
        parser.parse_args(["--from", "yesterday"])
    assert "is no time" in capsys.readouterr().err
