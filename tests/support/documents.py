"""The Markdown documents of the project, and the code in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Not ours: what is installed, generated or measured.
SKIPPED = {".git", ".venv", ".work", "__pycache__", "gen", "node_modules", "results"}


def project_files() -> Iterator[Path]:
    """Yield the files of the project; of folders with a dot, none."""
    for folder, below, names in os.walk(ROOT):
        below[:] = sorted(each for each in below if each not in SKIPPED and not each.startswith("."))
        yield from (Path(folder, each) for each in sorted(names))


DOCUMENTS = tuple(file for file in project_files() if file.suffix == ".md")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")


def name(file: Path) -> str:
    """Return what a document is called in the project."""
    return str(file.relative_to(ROOT))


def blocks(file: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language; `""`: those that name none."""
    return [block for _, found, block in _BLOCK.findall(file.read_text()) if found == language]


def prose(file: Path) -> str:
    """Return a document without its fenced blocks."""
    return _BLOCK.sub("", file.read_text())


def spans(file: Path) -> list[str]:
    """Return the code within the prose, each piece on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(file))]


def commands(file: Path) -> list[str]:
    """Return what a document tells people to type: lines of shell blocks, and code within the prose."""
    typed = [*blocks(file, "sh"), *blocks(file, "")]
    joined = "\n".join(typed).replace("\\\n", " ")
    return [line.partition(" #")[0].strip() for line in joined.splitlines()] + spans(file)
