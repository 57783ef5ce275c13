"""What kind of work a prompt asks for: a linear model over hashed words, well under a millisecond. Pure."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Characters that are read of the beginning and of the end: what is asked stands in one of them.
HEAD, TAIL = 400, 400
BUCKETS = 1 << 14
# Weights are kept as whole numbers of this fraction.
SCALE = 1000
# Pieces of words: the languages share their stems, and words their endings.
_PIECES = (3, 4)

# Words; each Chinese character; numbers; what code is made of.
_TOKENS = re.compile(r"[a-zà-öø-ÿßœ]+|[\u4e00-\u9fff]|[0-9]+|```|[{}<>=]|\(\)|->|::|\?")


def tokens_of(text: str) -> list[str]:
    """Return what is read of a text, in order, in lower case."""
    if len(text) > HEAD + TAIL:
        text = f"{text[:HEAD]} {text[-TAIL:]}"
    return ["0" if token.isdigit() else token for token in _TOKENS.findall(text.lower())]


def features_of(text: str) -> set[int]:
    """Return the numbers of a text's features: words, pieces of words, pairs of neighbours, how it begins."""
    tokens = tokens_of(text)
    names = set(tokens)
    marked = [f"<{token}>" for token in names if token.isalpha()]
    names.update([f"{one} {other}" for one, other in pairwise(tokens)])
    for size in _PIECES:
        names.update([word[at : at + size] for word in marked for at in range(len(word) - size + 1)])
    names.update([f"^{token}" for token in tokens[:2]])
    crc32 = zlib.crc32
    return {crc32(name.encode()) & (BUCKETS - 1) for name in names}


@dataclass(frozen=True, slots=True)
class Detection:
    """What kind of work a request is."""

    task: str
    confidence: float
    """From 0 to 1."""
    source: str
    """Who says so: caller, request, local or model; empty when nobody had to."""
    probabilities: Mapping[str, float]
    """Of every task; empty unless a classifier was asked."""


UNASKED = Detection("chat", 1.0, "", {})


@dataclass(frozen=True, slots=True)
class Classifier:
    """A trained model. `tools/train_tasks.py` makes it."""

    tasks: Sequence[str]
    bias: Sequence[float]
    weights: Mapping[int, Sequence[int]]
    """For each feature that says something, a number for each task."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Classifier:
        """Read a model. Raises LookupError and ValueError when it is none."""
        weights = {int(bucket): tuple(row) for bucket, row in document["weights"].items()}
        return cls(tuple(document["tasks"]), tuple(document["bias"]), weights)

    def probabilities(self, text: str) -> Mapping[str, float]:
        """Return how probable each task is, most probable first; they sum up to 1."""
        known = self.weights
        features = features_of(text)
        rows = [known[bucket] for bucket in features if bucket in known]
        totals = [sum(column) for column in zip(self.bias, *rows, strict=True)]
        highest, unit = max(totals), SCALE * math.sqrt(len(features) or 1)
        shares = [math.exp((total - highest) / unit) for total in totals]
        whole = sum(shares)
        found = {task: share / whole for task, share in zip(self.tasks, shares, strict=True)}
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    def detect(self, instructions: str, latest: str) -> Detection:
        """Return the task of the last words, read with the instructions where those words are few."""
        text = f"{instructions[:HEAD]}\n{latest}" if instructions and len(latest) < HEAD else latest
        if not text.strip():
            return UNASKED
        found = self.probabilities(text)
        task, confidence = next(iter(found.items()))
        return Detection(task, confidence, "local", found)
