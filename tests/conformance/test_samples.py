"""What plugin authors start from: both samples keep the contract, and stay short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.plugins import (
    ROOT,
    broken_clauses,
    running_python_sample,
    running_typescript_sample,
    shown_failures,
    verdict,
)

SAMPLES = ROOT / "samples"
JUDGED = {
    "CAP-3",
    "ANSWER-4",
    "RECEIPT-3",
    "RECEIPT-4",
    "STREAM-9",
    "ERROR-5",
    "INPUT-2",
    "INPUT-3",
    "CANCEL-1",
    "PARALLEL-2",
}


async def test_python(tmp_path: Path) -> None:
    async with running_python_sample(tmp_path) as address:
        results = await verdict(address)
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > JUDGED | {"HEALTH-2"}


async def test_typescript() -> None:
    async with running_typescript_sample() as address:
        results = await verdict(address)
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > JUDGED


@pytest.mark.parametrize("program", ["python-provider/provider.py", "typescript-provider/provider.ts"])
def test_they_are_short(program: str) -> None:
    assert len((SAMPLES / program).read_text().splitlines()) < 150


def test_the_lock_names_no_address() -> None:
    text = (SAMPLES / "typescript-provider" / "package-lock.json").read_text()
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


def test_the_document_for_authors_explains_every_clause() -> None:
    from services.providers.domain.clauses import CLAUSES

    document = (ROOT / "docs" / "plugins.md").read_text()
    missing = [clause for clause, text in CLAUSES.items() if f"| {clause} | {text} |" not in document]
    assert not missing
