"""What became of each parameter on its way into another format."""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import ParameterReceipt


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

    def _add(self, name: str, outcome: str, detail: str) -> None:
        self._receipts.setdefault(
            (name, outcome), ParameterReceipt(name=name, outcome=outcome, detail=detail)
        )

    def all(self) -> list[ParameterReceipt]:
        """Return the receipts in the order they were written."""
        return list(self._receipts.values())
