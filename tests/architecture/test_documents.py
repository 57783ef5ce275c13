"""What documents refer to is there: pages, headings, files, make targets, modules."""

from __future__ import annotations

import re

from tests.support.documents import DOCUMENTS, ROOT, commands, name, project_files, prose, spans

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FILE = re.compile(r"([\w.-]+/)*[\w-]+\.(py|md|toml|json|proto|sh|txt|yaml|tsv)")
_FOLDER = re.compile(r"(services|tests|docs|bench|tools|protos|deploy|samples)/[\w./-]*")
_MAKE = re.compile(r"\bmake ((?:[a-z][a-z-]+ ?)+)")
_MODULE = re.compile(r"python -m ((?:bench|services|tests)[\w.]*)")
# A user's, not the project's; and what `make bench` writes.
NOT_OURS = {"omnihub.toml", "bench/.work/", "bench/.work/logs/"}


def anchors(text: str) -> set[str]:
    """Return what the headings of a document are called in links."""
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def test_documents_are_found() -> None:
    assert {"README.md", "docs/routing.md", "services/router/README.md"} <= set(map(name, DOCUMENTS))
    assert len(DOCUMENTS) > 40


def test_anchors_are_those_of_headings() -> None:
    assert anchors("# One `image`, many\n## [0001](x.md): what?\n") == {"one-image-many", "0001-what"}


def test_links_lead_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for link in _LINK.findall(prose(document)):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                broken.append((name(document), link))
    assert not broken


def test_files_that_are_named_exist() -> None:
    """A file may be named by the end of its path: `server.py`, `domain/purse.py`."""
    files = {name(file) for file in project_files()}
    ends = {"/".join(parts[at:]) for parts in (file.split("/") for file in files) for at in range(len(parts))}
    missing = []
    for document in DOCUMENTS:
        for span in spans(document):
            path = span.partition("::")[0].removeprefix("../")
            if path in NOT_OURS or not (_FILE.fullmatch(path) or _FOLDER.fullmatch(path)):
                continue
            if path not in ends and not (ROOT / path).is_dir():
                missing.append((name(document), span))
    assert not missing


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {
        (name(document), target)
        for document in DOCUMENTS
        for each in commands(document)
        for found in _MAKE.findall(each)
        for target in found.split()
    }
    assert len(asked) > 20
    assert not {each for each in asked if each[1] not in targets}


def test_modules_that_are_run_exist() -> None:
    run = {
        module for document in DOCUMENTS for each in commands(document) for module in _MODULE.findall(each)
    }
    paths = {module: ROOT / module.replace(".", "/") for module in run}
    assert len(run) > 5
    assert not [
        module
        for module, path in paths.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ]


def test_the_index_of_decisions_is_whole() -> None:
    folder = ROOT / "docs" / "adr"
    row = re.compile(r"^\| \[(\d{4})\]\((\S+)\) \| (.*) \|$", re.MULTILINE)
    pages = sorted(folder.glob("0*.md"))
    headings = [file.read_text().partition("\n")[0].removeprefix("# ").split(" ", 1) for file in pages]
    assert row.findall((folder / "README.md").read_text()) == [
        (number, file.name, title) for file, (number, title) in zip(pages, headings, strict=True)
    ]
