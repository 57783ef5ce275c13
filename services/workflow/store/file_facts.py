"""What is known of files, written down in the transaction in which they begin to count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.bulk import BulkInsert, OneOf, name_of
from services.common.db import Database
from services.workflow.material_tables import file_garbage
from services.workflow.tables import file

Facts = Mapping[str, Any]
"""A row of the table `file`."""


class FileFacts:
    """Makes the statements; see services/common/bulk.py."""

    def __init__(self, database: Database) -> None:
        self._new = BulkInsert(database, file)
        self._one_of = OneOf(database)
        self._announced = f"DELETE FROM {name_of(database, file_garbage)} WHERE path {self._one_of.text}"
        self._names = file.c.keys()

    def statements(self, files: Sequence[Facts]) -> list[tuple[str, Any]]:
        """Return what writes facts down and takes back what announced them. Those that are known stay."""
        if not files:
            return []
        paths = self._one_of.argument([each["path"] for each in files])
        rows = [tuple(each[name] for name in self._names) for each in files]
        return [(self._announced, (paths,)), *self._new.of(rows)]
