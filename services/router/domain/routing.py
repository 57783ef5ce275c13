"""Routing policies as data: what priorities, latency preferences and modes mean. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.router.domain.errors import ConflictingOptionsError, InvalidPolicyError

PRIORITIES = ("cheap", "balanced", "best")
LATENCY_PREFERENCES = ("normal", "fast")
MODES = ("flash", "think", "ultra-think")
TASKS = ("chat", "coding", "reasoning", "summarization", "translation", "image", "agent_step")
CAPABILITIES = ("tools", "vision", "audio", "documents", "json_schema", "reasoning", "stream", "embed")


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part of a score counts. They sum up to 1."""

    cost: float
    latency: float
    task: float


@dataclass(frozen=True, slots=True)
class Mode:
    """A bundle of wishes under one name."""

    priority: str
    latency_pref: str
    require: tuple[str, ...] = ()


Key = tuple[str, str]
"""Priority and latency preference."""

_WEIGHTS: Mapping[Key, Weights] = {
    ("cheap", "normal"): Weights(0.7, 0.1, 0.2),
    ("cheap", "fast"): Weights(0.5, 0.4, 0.1),
    ("balanced", "normal"): Weights(0.25, 0.15, 0.6),
    ("balanced", "fast"): Weights(0.2, 0.6, 0.2),
    ("best", "normal"): Weights(0.05, 0.05, 0.9),
    ("best", "fast"): Weights(0.05, 0.35, 0.6),
}
_MODES: Mapping[str, Mode] = {
    "flash": Mode("balanced", "fast"),
    "think": Mode("balanced", "normal", ("reasoning",)),
    "ultra-think": Mode("best", "normal", ("reasoning",)),
}


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """How one organisation's automatic choices are made."""

    version: str = "default"
    """Names the policy in decisions."""
    default_priority: str = "balanced"
    """For requests that name neither a priority nor a mode."""
    weights: Mapping[Key, Weights] = field(default_factory=lambda: _WEIGHTS)
    modes: Mapping[str, Mode] = field(default_factory=lambda: _MODES)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], version: str) -> RoutingPolicy:
        """Return the default policy with what a document says in its place. Raises InvalidPolicyError."""
        unknown = set(document) - {"default_priority", "weights", "modes"}
        if unknown:
            raise InvalidPolicyError(
                min(unknown), "no such field; there are default_priority, weights, modes"
            )
        priority = _one_of("default_priority", document.get("default_priority", "balanced"), PRIORITIES)
        weights = dict(_WEIGHTS)
        for priority_name, by_latency in _table("weights", document.get("weights", {})).items():
            _one_of("weights", priority_name, PRIORITIES)
            for latency, values in _table(f"weights.{priority_name}", by_latency).items():
                _one_of(f"weights.{priority_name}", latency, LATENCY_PREFERENCES)
                weights[priority_name, latency] = _read_weights(f"weights.{priority_name}.{latency}", values)
        modes = dict(_MODES)
        for name, mode in _table("modes", document.get("modes", {})).items():
            modes[_one_of("modes", name, MODES)] = _read_mode(f"modes.{name}", mode)
        return cls(version, priority, weights, modes)

    def to_document(self) -> dict[str, Any]:
        """Return the whole policy as plain data; `from_document` reads it back."""
        weights: dict[str, dict[str, dict[str, float]]] = {}
        for (priority, latency), each in self.weights.items():
            values = {"cost": each.cost, "latency": each.latency, "task": each.task}
            weights.setdefault(priority, {})[latency] = values
        modes = {
            name: {
                "priority": mode.priority,
                "latency_pref": mode.latency_pref,
                "require": list(mode.require),
            }
            for name, mode in self.modes.items()
        }
        return {"default_priority": self.default_priority, "weights": weights, "modes": modes}


DEFAULT_POLICY = RoutingPolicy()


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidPolicyError(name, "expected an object")
    return value


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidPolicyError(name, f"{value!r} is none of {', '.join(allowed)}")
    return value


def _read_weights(name: str, value: object) -> Weights:
    parts = _table(name, value)
    if set(parts) != {"cost", "latency", "task"}:
        raise InvalidPolicyError(name, "expected cost, latency and task")
    numbers = [parts[part] for part in ("cost", "latency", "task")]
    for number in numbers:
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number <= 1000:
            raise InvalidPolicyError(name, "expected numbers from 0 to 1000")
    total = math.fsum(numbers)
    if not total:
        raise InvalidPolicyError(name, "at least one weight must be greater than 0")
    if abs(total - 1) < 1e-9:
        return Weights(*map(float, numbers))
    return Weights(*(number / total for number in numbers))


def _read_mode(name: str, value: object) -> Mode:
    fields = _table(name, value)
    unknown = set(fields) - {"priority", "latency_pref", "require"}
    if unknown:
        raise InvalidPolicyError(name, f"no such field: {min(unknown)}")
    require = fields.get("require", ())
    if not isinstance(require, list | tuple):
        raise InvalidPolicyError(f"{name}.require", "expected a list of capabilities")
    return Mode(
        _one_of(f"{name}.priority", fields.get("priority", "balanced"), PRIORITIES),
        _one_of(f"{name}.latency_pref", fields.get("latency_pref", "normal"), LATENCY_PREFERENCES),
        tuple(_one_of(f"{name}.require", capability, CAPABILITIES) for capability in require),
    )


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller's words come to under a policy."""

    priority: str
    latency_pref: str
    mode: str
    weights: Weights
    require: tuple[str, ...]
    """Capabilities that the mode stands for."""


# What a mode says itself: the other word would say the opposite.
_OPPOSITES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "flash": (("priority", "best"),),
    "think": (("latency_pref", "fast"),),
    "ultra-think": (("latency_pref", "fast"), ("priority", "cheap")),
}


def resolve(priority: str, latency_pref: str, mode: str, policy: RoutingPolicy) -> Wishes:
    """Return what the words mean. Empty words leave the choice to mode and policy.

    Raises ConflictingOptionsError.
    """
    given = {"priority": priority, "latency_pref": latency_pref}
    for name, word in _OPPOSITES.get(mode, ()):
        if given[name] == word:
            raise ConflictingOptionsError("mode", mode, name, word)
    bundle = policy.modes.get(mode)
    if bundle is not None:
        priority, latency_pref = priority or bundle.priority, latency_pref or bundle.latency_pref
    priority, latency_pref = priority or policy.default_priority, latency_pref or "normal"
    require = () if bundle is None else bundle.require
    return Wishes(priority, latency_pref, mode, policy.weights[priority, latency_pref], require)
