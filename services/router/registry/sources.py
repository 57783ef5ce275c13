"""Where an import takes its models from: the shipped catalogue, a file, and the list prices' package.

The package's data are its bundled snapshot; it is never updated from the network. Reading it takes some
10 ms, so it belongs in a thread.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice

from services.router.domain.errors import Flaw
from services.router.domain.registration import InvalidModelError, check_new_name, read_document
from services.router.settings import RouteSettings

SHIPPED = Path(__file__).parent / "catalogue" / "models.json"
PACKAGE = "genai-prices"
# What a name tells about a model that does something else than answer in text.
_OTHER = (
    *("audio", "dall-e", "guard", "image", "live", "moderation", "ocr", "realtime", "rerank", "robotics"),
    *("safeguard", "transcribe", "tts", "video", "voxtral", "whisper"),
)
_EMBED = "embed"


def read_catalogue(path: Path = SHIPPED) -> dict[str, RouteSettings]:
    """Return the models of a file, by name. Raises ValueError naming what is wrong.

    The file is JSON: `{"models": {"name": {...}}}`, each with the settings of `[models."name"]`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    described = content.get("models") if isinstance(content, Mapping) else None
    if not isinstance(described, Mapping):
        raise ValueError(f'{path}: expected {{"models": {{"name": {{...}}}}}}')
    return {name: _read(name, each, path) for name, each in described.items()}


def _read(name: str, described: Any, path: Path) -> RouteSettings:
    try:
        check_new_name(name)
        if not isinstance(described, Mapping):
            raise InvalidModelError([Flaw("model", "expected an object")])
        return read_document(described)
    except InvalidModelError as error:
        raise ValueError(f"{path}: {name!r}: {error}") from None


def shipped() -> dict[str, RouteSettings]:
    """Return the shipped catalogue; context lengths that it leaves open are those of the list prices."""
    known = read_catalogue()
    contexts = {
        f"{provider.id}/{model.id}": model.context_window
        for provider in get_snapshot().providers
        for model in provider.models
        if model.context_window
    }
    return {name: _with_context(settings, contexts) for name, settings in known.items()}


def _with_context(settings: RouteSettings, contexts: Mapping[str, int]) -> RouteSettings:
    if settings.context_length or settings.route[0] not in contexts:
        return settings
    return settings.model_copy(update={"context_length": contexts[settings.route[0]]})


def listed(vendors: Collection[str] = ()) -> dict[str, RouteSettings]:
    """Return the models of the list prices, of all vendors or some. Raises ValueError for an unknown vendor.

    A model that several vendors offer under one name is one model with several endpoints. What the shipped
    catalogue knows of a model is taken from there.
    """
    found = _listed(vendors)
    known = shipped()
    return {name: known.get(name, settings) for name, settings in found.items()}


def _listed(vendors: Collection[str]) -> dict[str, RouteSettings]:
    providers = get_snapshot().providers
    unknown = sorted(set(vendors) - {provider.id for provider in providers})
    if unknown:
        known = ", ".join(provider.id for provider in providers)
        raise ValueError(f"the list prices have no vendor {unknown[0]!r}; known: {known}")
    documents: dict[str, dict[str, Any]] = {}
    for provider in providers:
        for model in provider.models if not vendors or provider.id in vendors else ():
            described = _describe(model)
            if described is None:
                continue
            name = model.id.rpartition("/")[2]
            known_as = documents.setdefault(name, {"route": [], **described})
            if known_as["capabilities"] == described["capabilities"] and len(known_as["route"]) < 64:
                known_as["route"].append(f"{provider.id}/{model.id}")
    found = {}
    for name, document in documents.items():
        try:
            check_new_name(name)
            found[name] = read_document(document)
        except InvalidModelError:
            # Such as `model:free`: it can still be named directly.
            continue
    return found


def _describe(model: ModelInfo) -> dict[str, Any] | None:
    """Return what is known of a model; None when its name or price does not say what it does."""
    prices = model.prices
    if not isinstance(prices, ModelPrice):
        prices = prices[-1].prices
    words = model.id.lower()
    if model.deprecated or words.startswith("ft:") or words.endswith("-") or ".ft-" in words:
        return None
    if _EMBED in words:
        capabilities = ["embed"]
    elif any(word in words for word in _OTHER) or None in (prices.input_mtok, prices.output_mtok):
        return None
    else:
        capabilities = ["chat", "stream"]
    version = importlib.metadata.version(PACKAGE)
    described: dict[str, Any] = {"capabilities": capabilities, "source": f"{PACKAGE} {version}"}
    if model.context_window:
        described["context_length"] = model.context_window
    return described
