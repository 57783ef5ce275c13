"""The README's first example, as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.suite import Suite

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_first_example_works(suite: Suite, streamed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    example = found[1]
    assert len(example.strip().splitlines()) == 3
    key = 'open(".omnihub/bootstrap-key").read().strip()'
    assert key in example
    # A test has a port and a key of its own; nothing else is changed.
    example = example.replace(key, repr(suite.key)).replace("http://127.0.0.1:8080", suite.url)
    if streamed:
        asked = 'messages=[{"role": "user", "content": "Hello"}]'
        example = example.replace(
            f"{asked}).choices[0].message.content", f"{asked}, stream=True).response.read()"
        )
        assert "stream=True" in example
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Hello" in printed
    assert not streamed or "[DONE]" in printed
