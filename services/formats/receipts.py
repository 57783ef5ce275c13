"""What became of each parameter on its way into another format."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

from omnihub.common.v1.chat_pb2 import ParameterReceipt

# A body of nothing but invented names must not fill the record.
MOST = 200
_NAME_LIMIT = 64
# Longer texts are not worth their memory.
_KEPT_LENGTH = 200


@lru_cache(maxsize=1024)
def _kept(name: str, outcome: str, detail: str) -> ParameterReceipt:
    return ParameterReceipt(name=name, outcome=outcome, detail=detail)


def _entry(name: str, outcome: str, detail: str) -> ParameterReceipt:
    """Return an entry, which nobody may change: the same ones come again and again."""
    if len(name) + len(detail) <= _KEPT_LENGTH:
        return _kept(name, outcome, detail)
    return ParameterReceipt(name=name, outcome=outcome, detail=detail)


def _passed(name: str) -> ParameterReceipt:
    """Return the receipt of a value that travels on as it is."""
    return _kept(name if len(name) <= _NAME_LIMIT else name[:_NAME_LIMIT] + "...", "forwarded", "")


class Receipts:
    """Collects one receipt per parameter and outcome."""

    def __init__(self) -> None:
        self._receipts: dict[tuple[str, str], ParameterReceipt] = {}

    def forwarded(self, name: str) -> None:
        """The value travels on as it is."""
        self._add(name, "forwarded", "")

    def translated(self, name: str, detail: str) -> None:
        """The value travels on under another name or in another form."""
        self._add(name, "translated", detail)

    def clamped(self, name: str, detail: str) -> None:
        """The value was moved into the range of the provider."""
        self._add(name, "clamped", detail)

    def added(self, name: str, detail: str) -> None:
        """The caller did not send it."""
        self._add(name, "added", detail)

    def dropped(self, name: str, detail: str) -> None:
        """The provider cannot take it."""
        self._add(name, "dropped", detail)

    def rest(self, fields: Iterable[str]) -> list[ParameterReceipt]:
        """Return the receipts, with all other fields of a body that is passed on as forwarded."""
        told = {name for name, _ in self._receipts}
        passed = [_passed(name) for name in islice(fields, MOST) if name not in told]
        return [*self._receipts.values(), *passed]

    def _add(self, name: str, outcome: str, detail: str) -> None:
        if (name, outcome) not in self._receipts:
            self._receipts[name, outcome] = _entry(name, outcome, detail)

    def all(self) -> list[ParameterReceipt]:
        """Return the receipts in the order they were written."""
        return list(self._receipts.values())
