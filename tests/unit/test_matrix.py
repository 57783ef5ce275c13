"""The adapter test matrix is whole: every cell has a test, and every mark is of a cell."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support.matrix import (
    FOLDERS,
    JOB_FOLDERS,
    ROOT,
    Row,
    Table,
    complaints,
    read_table,
    report,
    show,
)

CHAT_ROWS = {*range(1, 43), 51} - {23}  # 23 is of speech alone.
TABLE = Table({"a": "A", "b": "B"}, (Row(1, "answers"), Row(2, "streams", {"b": "it has none"})))


def test_the_table_is_whole() -> None:
    table = read_table()
    assert [row.number for row in table.rows] == sorted(CHAT_ROWS)
    for row in table.rows:
        assert row.behaviour
        assert row.not_applicable.keys() < table.adapters.keys(), row.number
        assert all(len(reason) > 10 for reason in row.not_applicable.values()), row.number


def test_the_table_of_jobs_is_whole() -> None:
    table = read_table("matrix_job_rows.toml")
    assert {row.number for row in table.rows} >= {22, 23, *range(43, 51)}
    for row in table.rows:
        assert not row.open.keys() & row.not_applicable.keys(), row.number
        reasons = [*row.not_applicable.values(), *row.open.values()]
        assert row.behaviour
        assert all(len(reason) > 10 for reason in reasons), row.number


def test_what_is_left_open_is_shown_until_a_test_fills_it() -> None:
    table = Table({"a": "A", "b": "B"}, (Row(1, "answers", {}, {"b": "nobody has tried"}),))
    shown = show(table, table.states({(1, "a"): {"passed"}})).splitlines()
    assert shown[1].split() == ["1", "answers", "ok", "OPEN"]
    assert "open: row 1, b: nobody has tried" in shown
    assert shown[-1] == "1 passed, 0 failed, 0 missing, 1 open"
    claims = {(1, "a"): ["t"], (1, "b"): ["x"]}
    assert complaints(table, claims) == ["row 1, b is no cell of the matrix, but marks x"]


def test_every_cell_has_a_test_and_every_mark_a_cell() -> None:
    """In a process of its own: tests are collected, none is run."""
    command = [sys.executable, "-m", "tests.support.matrix", "--check"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_marks_are_only_where_the_matrix_looks() -> None:
    mark = re.compile(r"mark\.matrix\(|[^a-z_]cells\(\d|@asks\(|@cell\(")
    for path in (ROOT / "tests").rglob("test_*.py"):
        if mark.search(path.read_text()) and path.name != "test_matrix.py":
            assert str(path.relative_to(ROOT)).startswith((*FOLDERS, *JOB_FOLDERS)), path


def test_what_is_missing_or_invented_is_named() -> None:
    assert complaints(TABLE, {(1, "a"): ["t"], (2, "a"): ["t"], (2, "b"): ["x"], (9, "a"): ["y"]}) == [
        "no test fills row 1, b",
        "row 2, b is no cell of the matrix, but marks x",
        "row 9, a is no cell of the matrix, but marks y",
    ]


def test_a_cell_is_passed_failed_missing_or_not_applicable() -> None:
    states = TABLE.states({(1, "a"): {"passed", "failed"}, (1, "b"): {"passed"}, (2, "a"): {"skipped"}})
    assert states == {(1, "a"): "failed", (1, "b"): "passed", (2, "a"): "missing"}
    shown = show(TABLE, states).splitlines()
    assert shown[1].split() == ["1", "answers", "FAILED", "ok"]
    assert shown[2].split() == ["2", "streams", "MISSING", "-"]
    assert "  2 b: it has none" in shown
    assert {"failed: row 1, a", "missing: row 2, a"} <= set(shown)
    assert shown[-1] == "1 passed, 1 failed, 1 missing"


def test_the_last_line_is_about_all_tables() -> None:
    other = Table({"c": "C"}, (Row(1, "speaks"), Row(2, "sings", {}, {"c": "nobody has tried"})))
    seen = {(1, "a"): {"passed"}, (1, "b"): {"failed"}, (2, "a"): {"passed"}}
    shown = report([(TABLE, TABLE.states(seen)), (other, other.states({}))]).splitlines()
    assert "2 passed, 1 failed, 0 missing" in shown
    assert "0 passed, 0 failed, 1 missing, 1 open" in shown
    assert shown[-1] == "2 passed, 1 failed, 1 missing, 1 open"
