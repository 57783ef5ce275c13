"""docs/peers-tests.md names tests that exist."""

from __future__ import annotations

import re

from tests.support.matrix import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_complaint_has_a_test() -> None:
    lines = (ROOT / "docs" / "peers-tests.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) >= 40
    for row in rows:
        named = NAMED.findall(row)
        assert named, row
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (
                path,
                name,
            )
