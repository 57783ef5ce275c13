"""Wiring of the gateway."""

from __future__ import annotations

from omnihub.router.v1.router_service_api import RouterService
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.common.authenticator import Authenticator
from services.common.service import Infrastructure, Service
from services.gateway.chat import ChatEndpoint
from services.gateway.embeddings import EmbeddingsEndpoint
from services.gateway.exchange import Endpoint
from services.gateway.models import ModelsEndpoint
from services.gateway.settings import GatewaySettings
from services.gateway.surfaces import ANTHROPIC, OPENAI, Surface


class _ModelRoute:
    """GET /v1/models/{model}: the name may contain slashes."""

    def __init__(self, router: RouterService, authenticator: Authenticator) -> None:
        self._router = router
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        models = ModelsEndpoint(self._router, scope["path_params"].get("model", ""))
        anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
        surface = ANTHROPIC if anthropic else OPENAI
        endpoint = Endpoint(surface, self._authenticator, "GET /v1/models", models.serve)
        await endpoint(scope, receive, send)


def build(settings: GatewaySettings, infrastructure: Infrastructure) -> Service:
    """Build the gateway."""
    router = infrastructure.connector.connect(RouterService, "router")
    authenticator = infrastructure.authenticator
    assert authenticator is not None
    limit = settings.body_limit_bytes

    def chat(path: str, surface: Surface) -> Route:
        work = ChatEndpoint(surface, router, limit).serve
        endpoint = Endpoint(surface, authenticator, f"POST {path}", work)
        return Route(path, endpoint, methods=["POST"])

    embeddings = EmbeddingsEndpoint(router, limit).serve
    models = _ModelRoute(router, authenticator)
    routes = [
        chat("/v1/chat/completions", OPENAI),
        chat("/v1/messages", ANTHROPIC),
        Route(
            "/v1/embeddings",
            Endpoint(OPENAI, authenticator, "POST /v1/embeddings", embeddings),
            methods=["POST"],
        ),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", models, methods=["GET"]),
    ]
    return Service(name="gateway", routes=routes)
