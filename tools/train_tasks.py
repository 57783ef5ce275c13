"""Trains the router's task classifier, and measures it: `make task-model`.

Reads tools/tasks/train.tsv and writes services/router/planning/task_model.json; the same input gives the
same file.
Then it prints how many prompts of tools/tasks/held_out.tsv, which training never sees, are classified as
labelled.
`--check` trains nothing and measures the model that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from services.router.domain.routing import TASKS
from services.router.domain.tasks import SCALE, Classifier, features_of

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "services" / "router" / "planning" / "task_model.json"
TRAIN = ROOT / "tools" / "tasks" / "train.tsv"
HELD_OUT = ROOT / "tools" / "tasks" / "held_out.tsv"
EPOCHS = 40
RATE = 1.0
DECAY = 2e-4
# Features seen in one prompt only say more about the prompt than about its task.
LEAST_WEIGHT = 0.05


class Prompt(NamedTuple):
    """A labelled prompt."""

    task: str
    language: str
    text: str


def read(file: Path) -> list[Prompt]:
    """Return the prompts of a file: task, language and text between tabs."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    prompts = [Prompt(*line.split("\t")) for line in lines]
    assert {prompt.task for prompt in prompts} <= set(TASKS)
    return [prompt._replace(text=prompt.text.replace("\\n", "\n")) for prompt in prompts]


def train(prompts: Sequence[Prompt]) -> Classifier:
    """Return a model: multinomial logistic regression, by stochastic gradient descent."""
    dice = random.Random(7)
    examples = [(sorted(features_of(prompt.text)), TASKS.index(prompt.task)) for prompt in prompts]
    weights: dict[int, list[float]] = {}
    bias = [0.0] * len(TASKS)
    for epoch in range(EPOCHS):
        dice.shuffle(examples)
        rate = RATE / (1 + epoch / 10)
        for features, label in examples:
            rows = [weights.setdefault(feature, [0.0] * len(TASKS)) for feature in features]
            size = math.sqrt(len(features))
            totals = [sum(column) / size for column in zip(bias, *rows, strict=True)]
            highest = max(totals)
            shares = [math.exp(total - highest) for total in totals]
            whole = sum(shares)
            for task, share in enumerate(shares):
                step = rate * ((task == label) - share / whole)
                bias[task] += step / size
                for row in rows:
                    row[task] += step / size - rate * DECAY * row[task]
    kept = {
        feature: [round(weight * SCALE) for weight in row]
        for feature, row in sorted(weights.items())
        if max(map(abs, row)) >= LEAST_WEIGHT
    }
    return Classifier(TASKS, tuple(round(each * SCALE) for each in bias), kept)


def write(model: Classifier) -> None:
    """Write the model's file."""
    rows = ",\n".join(f'"{bucket}":{json.dumps(row)}' for bucket, row in model.weights.items())
    head = f'"tasks":{json.dumps(model.tasks)},"bias":{json.dumps(model.bias)}'
    MODEL.write_text(f'{{{head},"weights":{{\n{rows}\n}}}}\n'.replace(", ", ","))


def load() -> Classifier:
    """Return the model that the router uses."""
    return Classifier.from_document(json.loads(MODEL.read_text()))


def measure(model: Classifier, prompts: Sequence[Prompt]) -> tuple[float, Counter[tuple[str, str]]]:
    """Return the accuracy, and how often each task was taken for each."""
    taken: Counter[tuple[str, str]] = Counter()
    for prompt in prompts:
        taken[prompt.task, model.detect("", prompt.text).task] += 1
    right = sum(count for (task, found), count in taken.items() if task == found)
    return right / len(prompts), taken


def report(model: Classifier, prompts: Sequence[Prompt]) -> str:
    """Return accuracy, accuracy by language, the confusion table and the time a prompt takes, as Markdown."""
    accuracy, taken = measure(model, prompts)
    lines = [f"accuracy {accuracy:.1%} of {len(prompts)} prompts that training never saw", ""]
    for language in sorted({prompt.language for prompt in prompts}):
        own = [prompt for prompt in prompts if prompt.language == language]
        lines.append(f"- {language}: {measure(model, own)[0]:.1%} of {len(own)}")
    lines += ["", f"| labelled \\ found | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 1) + "|"]
    for task in TASKS:
        counts = " | ".join(str(taken[task, found] or "") for found in TASKS)
        lines.append(f"| {task} | {counts} |")
    return "\n".join(lines)


def microseconds(model: Classifier, text: str, times: int = 200) -> float:
    """Return the median time that one detection takes."""
    samples = []
    for _ in range(times):
        started = time.perf_counter()
        model.detect("", text)
        samples.append((time.perf_counter() - started) * 1e6)
    return statistics.median(samples)


def main() -> int:
    """Train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    options = parser.parse_args()
    if not options.check:
        write(train(read(TRAIN)))
    model, held_out = load(), read(HELD_OUT)
    texts = {"median prompt": sorted(held_out, key=lambda each: len(each.text))[len(held_out) // 2].text}
    texts["100 kB prompt"] = "word salad and more of it, " * 4000
    timing = [f"- {name}: {microseconds(model, text):.0f} us" for name, text in texts.items()]
    sys.stdout.write("\n".join([report(model, held_out), "", *timing]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
