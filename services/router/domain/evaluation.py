"""Judges routing policies by the answers their choices brought. Pure: the same answers, the same verdict.

A policy is compared with always taking the dearest model, always the cheapest, and with a control that uses
the same models equally often but without looking at the prompt: its share of each model is the policy's, so
it costs about the same. What a policy wins against the control is due to its choices, not its budget.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

RESAMPLES = 2000
CONFIDENCE = 0.95
KINDS = ("exact", "regex", "number", "json")
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


class WorkloadError(Exception):
    """A workload cannot be used; the message says which prompt and why."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A labelled prompt with an answer that can be checked."""

    name: str
    task: str
    language: str
    difficulty: str
    text: str
    check: Mapping[str, Any]
    sample: str
    """An answer that passes the check."""
    max_tokens: int = 300

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Prompt:
        """Read one entry of a workload. Raises WorkloadError."""
        name = str(document.get("name", "?"))
        try:
            prompt = cls(**document)
        except TypeError as error:
            raise WorkloadError(f"{name}: {error}") from None
        kind = prompt.check.get("kind")
        if kind not in KINDS or "value" not in prompt.check:
            raise WorkloadError(f"{name}: a check needs a value and a kind among {', '.join(KINDS)}")
        if not passes(prompt.sample, prompt.check):
            raise WorkloadError(f"{name}: its own sample does not pass its check")
        return prompt


def passes(answer: str, check: Mapping[str, Any]) -> bool:
    """Tell whether an answer is right."""
    return _CHECKS[check["kind"]](answer, check["value"])


def _exact(answer: str, value: Any) -> bool:
    return answer.strip().strip(".!\"'`").casefold() == str(value).casefold()


def _regex(answer: str, value: Any) -> bool:
    return re.search(str(value), answer, re.IGNORECASE | re.DOTALL) is not None


def _number(answer: str, value: Any) -> bool:
    """The last number of an answer counts: models reckon before they conclude."""
    found = _NUMBER.findall(answer)
    return bool(found) and abs(float(found[-1].replace(",", "")) - float(value)) < 1e-6


def _json(answer: str, value: Any) -> bool:
    """Every field of `value` must be there; a model may add others, and a fence around."""
    try:
        document = json.loads(answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except ValueError:
        return False
    return isinstance(document, dict) and all(document.get(key) == wanted for key, wanted in value.items())


_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "exact": _exact,
    "regex": _regex,
    "number": _number,
    "json": _json,
}


class Answered(NamedTuple):
    """What one model made of one prompt."""

    right: bool
    cost: float
    """Credits."""
    latency_ms: float


class Interval(NamedTuple):
    """A mean and the interval it lies in with 95 % confidence."""

    mean: float
    low: float
    high: float


Answers = Mapping[str, Mapping[str, Answered]]
"""By model, then by prompt."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one way to choose did."""

    name: str
    quality: Interval
    cost: Interval
    latency_ms: Interval
    share: Mapping[str, float]
    """How often it took each model."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A policy beside its control and beside the dearest model."""

    result: Result
    control: Result
    gain: Interval
    """Quality above the control's, from prompt to prompt."""
    saving: float
    """The part of the premium model's cost that it saves."""
    quality_change: Interval
    """Quality above the premium model's; negative when it is worse."""

    @property
    def proved(self) -> bool:
        """Tell whether it chooses better than chance does for the same money."""
        return self.gain.low > 0


def always(name: str, model: str, prompts: Sequence[Prompt], answers: Answers, seed: int) -> Result:
    """Return how one model does with every prompt."""
    return _result(name, [answers[model][prompt.name] for prompt in prompts], {model: 1.0}, seed)


def judge(
    name: str,
    choices: Sequence[str],
    premium: str,
    prompts: Sequence[Prompt],
    answers: Answers,
    seed: int,
) -> Verdict:
    """Return how the models that a policy chose, one for each prompt, compare."""
    counts = Counter(choices)
    share = {model: count / len(choices) for model, count in sorted(counts.items())}
    own = [answers[model][prompt.name] for model, prompt in zip(choices, prompts, strict=True)]
    # The mean over every way to deal the same models out to the prompts: no dice needed.
    shuffled = [_mixture(share, prompt.name, answers) for prompt in prompts]
    best = [answers[premium][prompt.name] for prompt in prompts]
    premium_cost = sum(each.cost for each in best)
    gain = [mine.right - other[0] for mine, other in zip(own, shuffled, strict=True)]
    change = [float(mine.right - other.right) for mine, other in zip(own, best, strict=True)]
    control = Result(
        f"shuffled {name}",
        bootstrap([each[0] for each in shuffled], seed),
        bootstrap([each[1] for each in shuffled], seed),
        bootstrap([each[2] for each in shuffled], seed),
        share,
    )
    saving = 1 - sum(each.cost for each in own) / premium_cost if premium_cost else 0.0
    return Verdict(
        _result(name, own, share, seed),
        control,
        bootstrap(gain, seed),
        saving,
        bootstrap(change, seed),
    )


def _mixture(share: Mapping[str, float], prompt: str, answers: Answers) -> tuple[float, float, float]:
    parts = [(part, answers[model][prompt]) for model, part in share.items()]
    return (
        sum(part * each.right for part, each in parts),
        sum(part * each.cost for part, each in parts),
        sum(part * each.latency_ms for part, each in parts),
    )


def _result(name: str, own: Sequence[Answered], share: Mapping[str, float], seed: int) -> Result:
    return Result(
        name,
        bootstrap([float(each.right) for each in own], seed),
        bootstrap([each.cost for each in own], seed),
        bootstrap([each.latency_ms for each in own], seed),
        share,
    )


def bootstrap(values: Sequence[float], seed: int) -> Interval:
    """Return the mean of values, and where the means of samples drawn from them with replacement lie."""
    dice = random.Random(seed)
    size = len(values)
    means = sorted(sum(dice.choices(values, k=size)) / size for _ in range(RESAMPLES))
    tail = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(sum(values) / size, means[tail], means[-tail - 1])
