"""GET /v1/models and GET /v1/models/{model}, in OpenAI's shape, or Anthropic's when its header is sent."""

from __future__ import annotations

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


class ModelsEndpoint:
    """Lists the models a key may use."""

    def __init__(self, router: RouterService, model: str = "") -> None:
        self._router = router
        self._model = model

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        models = await self._all(call)
        anthropic = "anthropic-version" in exchange.headers
        write = _anthropic if anthropic else _openai
        if self._model:
            found = [model for model in models if model.model_id == self._model]
            if not found:
                raise RpcError(
                    "MODEL_NOT_FOUND", f"no model {self._model!r}; GET /v1/models lists those you can use"
                )
            document: Any = write(found[0])
        elif anthropic:
            ids = [model.model_id for model in models]
            document = {
                "data": [write(model) for model in models],
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
        else:
            document = {"object": "list", "data": [write(model) for model in models]}
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
                return models


def _openai(model: Model) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(model.created),
        "owned_by": model.provider,
        "omnihub": {
            "route": list(model.route),
            "cost": {
                "input_per_million": model.input_price_per_million or None,
                "output_per_million": model.output_price_per_million or None,
            },
            "latency_ms": model.latency_ms,
            "strengths": list(model.strengths),
            "capabilities": list(model.capabilities),
            "context_length": model.context_length or None,
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
