"""Commands, settings and REST paths that documents name are there, as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest

from services.__main__ import main
from services.edge.routes import FACADE, contract
from services.settings import CONFIG_VARIABLE, PREFIX, Settings, load
from tests.support.documents import DOCUMENTS, ROOT, blocks, commands, name, spans

_VARIABLE = re.compile(rf"\b{PREFIX}[A-Z0-9_]+\b")
_SECTIONS = "log|telemetry|peers|auth|billing|gateway|router|edge|workflow|providers|models"
_SETTING = re.compile(rf"({_SECTIONS})(\.[\w<>\"]+)+")
_FILE = re.compile(r".*\.(py|md|toml|json|proto|txt)")
_METHOD = "GET|POST|PUT|PATCH|DELETE"
_PATH = re.compile(rf"\b({_METHOD})((?:, (?:{_METHOD}))*) (/[\w./{{}}:-]+)")
# Envoy's own, on its admin interface.
ENVOYS = {"/healthcheck/fail", "/drain_listeners"}


def typed(document: Path) -> set[str]:
    """Return each `omnihub ...` of a document, without what stands before and after it."""
    found = set()
    for command in commands(document):
        program, _, rest = re.sub(r"\b[A-Z_]+=\S+ ", "", command).partition(" ")
        if program == "omnihub" and rest:
            found.add(re.split(r" [|>&] ", rest)[0])
    return found


def follow(path: list[str]) -> bool:
    """Tell whether a setting exists."""
    annotation: Any = Settings
    for step in path:
        arguments = get_args(annotation)
        if len(arguments) == 2 and arguments[0] is str:
            # A table whose keys are the user's.
            annotation = arguments[1]
            continue
        sections = [
            each
            for each in (annotation, *arguments)
            if isinstance(each, type) and issubclass(each, pydantic.BaseModel)
        ]
        if not sections or step not in sections[0].model_fields:
            return False
        annotation = sections[0].model_fields[step].annotation
    return True


def leads(method: str, path: str) -> bool:
    """Tell whether the public port serves it."""
    concrete = re.sub(r"\{\w+\}", "x", path)
    served = [(each.method, each.path) for rpc in contract()[1] for each in rpc.bindings]
    served += [(allowed, each.path) for each in FACADE for allowed in each.methods]
    return any(method == allowed and re.fullmatch(each.pattern, concrete) for allowed, each in served)


def test_what_is_looked_for_is_found() -> None:
    assert 'generate image "a boat" --size 512x512 --out boat.png' in typed(ROOT / "README.md")
    assert follow(["router", "breaker", "open_s"])
    assert follow(["models", "any", "timeouts", "idle_s"])
    assert not follow(["router", "braker"])
    assert not follow(["providers", "any", "addres"])
    assert leads("GET", "/v1/router/decisions/{id}")
    assert not leads("POST", "/v1/router/decisions/{id}")


def test_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in sorted({each for document in DOCUMENTS for each in typed(document)}):
        words = re.sub(r"[\[\]\"]", "", command).split()
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
        with pytest.raises(SystemExit) as ended:
            main([*words[:first], "--help"])
        shown = capsys.readouterr()
        if ended.value.code or not all(option in shown.out for option in options):
            wrong.append((command, shown.err))
    assert not wrong


def test_variables_are_settings() -> None:
    unknown = []
    for document in DOCUMENTS:
        for variable in _VARIABLE.findall(document.read_text()):
            path = variable.removeprefix(PREFIX).lower().strip("_").split("__")
            if variable != CONFIG_VARIABLE and not variable.startswith(f"{PREFIX}TEST_") and not follow(path):
                unknown.append((name(document), variable))
    assert not unknown


def test_settings_that_are_named_exist() -> None:
    found = [(document, span.partition(" ")[0]) for document in DOCUMENTS for span in spans(document)]
    settings = [each for each in found if _SETTING.fullmatch(each[1]) and not _FILE.fullmatch(each[1])]
    assert len(settings) > 40
    assert not [(name(document), each) for document, each in settings if not follow(each.split("."))]


def test_settings_in_blocks_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALL_KEY", "sk-1")
    written = [block for document in DOCUMENTS for block in blocks(document, "toml")]
    assert len(written) >= 3
    for block in written:
        file = tmp_path / "omnihub.toml"
        file.write_text(block)
        load({CONFIG_VARIABLE: str(file), "ANTHROPIC_API_KEY": "sk-2"})


def test_paths_lead_somewhere() -> None:
    named = {
        (name(document), method, path)
        for document in DOCUMENTS
        for span in spans(document)
        for first, further, path in _PATH.findall(span)
        for method in [first, *further.split(", ")[1:]]
    }
    assert len(named) > 50
    assert not [each for each in sorted(named) if each[2] not in ENVOYS and not leads(*each[1:])]
