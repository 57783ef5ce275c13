"""GET /v1/models and GET /v1/models/{model}, in OpenAI's shape, or Anthropic's when its header is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.model_pb2 import Model
from omnihub.router.v1.router_service_api import RouterService

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.gateway.exchange import Exchange

PAGE_SIZE = 1000
ANTHROPIC_HEADER = "anthropic-version"


class ModelsEndpoint:
    """Lists the models a key may use."""

    def __init__(self, router: RouterService) -> None:
        self._router = router

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        models = await self._all(call)
        anthropic = ANTHROPIC_HEADER in exchange.headers
        write = _anthropic if anthropic else _openai
        wanted = exchange.path_params.get("model")
        document = _found(models, wanted, write) if wanted else _listed(models, write, paged=anthropic)
        await exchange.respond(200, msgspec.json.encode(document))

    async def _all(self, call: Call) -> list[Model]:
        models: list[Model] = []
        token = ""
        while True:
            request = pb.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._router.list_models(request, call)
            models.extend(answer.models)
            token = answer.next_page_token
            if not token:
                return [shown for model in models for shown in _with_aliases(model)]


def _with_aliases(model: Model) -> Iterator[Model]:
    """Yield a model under each of its names."""
    yield model
    names = [model.model_id, *model.aliases]
    for alias in model.aliases:
        other = Model()
        other.CopyFrom(model)
        other.model_id = alias
        del other.aliases[:]
        other.aliases.extend(name for name in names if name != alias)
        yield other


def _found(models: list[Model], name: str, write: Callable[[Model], dict[str, Any]]) -> dict[str, Any]:
    for model in models:
        if model.model_id == name:
            return write(model)
    raise RpcError("MODEL_NOT_FOUND", f"no model {name!r}; GET /v1/models lists those you can use")


def _listed(models: list[Model], write: Callable[[Model], dict[str, Any]], *, paged: bool) -> dict[str, Any]:
    data = [write(model) for model in models]
    if not paged:
        return {"object": "list", "data": data}
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}


def _openai(model: Model) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(model.created),
        "owned_by": model.provider,
        "omnihub": {
            "aliases": list(model.aliases),
            "route": list(model.route),
            "cost": {
                "input_per_million": model.input_price_per_million or None,
                "output_per_million": model.output_price_per_million or None,
            },
            "latency_ms": model.latency_ms,
            "strengths": list(model.strengths),
            "capabilities": list(model.capabilities),
            "context_length": model.context_length or None,
            "max_output": model.max_output or None,
            "synthetic": model.synthetic,
        },
    }


def _anthropic(model: Model) -> dict[str, Any]:
    created = datetime.fromtimestamp(model.created, UTC)
    return {
        "type": "model",
        "id": model.model_id,
        "display_name": model.model_id,
        "created_at": created.isoformat().replace("+00:00", "Z"),
    }
