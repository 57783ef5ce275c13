"""What an import does to a model: new facts come in, what an administrator changed stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

ADDED, UPDATED, UNCHANGED, KEPT = "added", "updated", "unchanged", "kept"


@dataclass(frozen=True, slots=True)
class Merged:
    """What becomes of one model."""

    outcome: str
    """added, updated, unchanged or kept (it is not the import's to change)."""
    document: Document | None
    """What it is from now on; None for a deleted model that stays deleted."""
    kept: tuple[str, ...] = ()
    """Fields that stay as somebody set them although the import says otherwise."""
    note: str = ""
    """Why it was kept."""


def merge(
    now: Document | None, imported: Document | None, new: Document, *, exists: bool, force: bool = False
) -> Merged:
    """Return what a model becomes that an import describes as `new`.

    `now` is what it is (None when it was deleted), `imported` what the last import said (None when no import
    made it), `exists` whether it ever was. `force` overwrites what an administrator changed.
    """
    if not exists:
        return Merged(ADDED, new)
    if force:
        return Merged(UNCHANGED, now) if now == new else Merged(UPDATED, new)
    if now is None:
        return Merged(KEPT, None, note="an administrator deleted it")
    if imported is None:
        return Merged(KEPT, now, note="an administrator made it")
    merged: dict[str, Any] = {}
    kept = []
    for key in sorted(now.keys() | imported.keys() | new.keys()):
        mine, before, theirs = now.get(key), imported.get(key), new.get(key)
        if mine != before and mine != theirs:
            kept.append(key)
        value = mine if mine != before else theirs
        if value is not None:
            merged[key] = value
    return Merged(UNCHANGED if merged == now else UPDATED, merged, tuple(kept))
