"""Wiring of the gateway."""

from __future__ import annotations

from omnihub.billing.v1.report_service_api import ReportService
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.response_service_api import ResponseService
from omnihub.router.v1.router_service_api import RouterService
from omnihub.workflow.v1.consent_service_api import ConsentService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common.service import Infrastructure, Service
from services.gateway.chat import ChatEndpoint
from services.gateway.count_tokens import CountTokensEndpoint
from services.gateway.debug import DebugEndpoint
from services.gateway.embeddings import EmbeddingsEndpoint
from services.gateway.exchange import Endpoint, Work
from services.gateway.media.generations import Generations
from services.gateway.media.images import ImagesEndpoint
from services.gateway.media.speech import SpeechEndpoint
from services.gateway.media.transcriptions import TranscriptionsEndpoint
from services.gateway.media.videos import VideosEndpoint
from services.gateway.models import ANTHROPIC_HEADER, ModelsEndpoint
from services.gateway.oversized import METHODS, PATH, OversizedEndpoint, refuse
from services.gateway.settings import GatewaySettings
from services.gateway.stored_responses import StoredResponseEndpoint
from services.gateway.surfaces import ANTHROPIC, NATIVE, OPENAI, RESPONSES, Surface
from services.gateway.usage_export import ApiEndpoint, UsageExport


def _by_version(openai: Endpoint, anthropic: Endpoint) -> ASGIApp:
    """Return an application that answers in Anthropic's shape whoever sends Anthropic's header."""
    name = ANTHROPIC_HEADER.encode()

    class Chosen:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            sent = any(header == name for header, _ in scope["headers"])
            await (anthropic if sent else openai)(scope, receive, send)

    return Chosen()


def build(settings: GatewaySettings, infrastructure: Infrastructure) -> Service:
    """Build the gateway."""
    router = infrastructure.connector.connect(RouterService, "router")
    authenticator = infrastructure.authenticator
    assert authenticator is not None
    limit = settings.body_limit_bytes

    def endpoint(name: str, surface: Surface, work: Work) -> Endpoint:
        return Endpoint(surface, authenticator, name, work)

    def post(path: str, surface: Surface, work: Work) -> Route:
        return route("POST", path, surface, work)

    def route(method: str, path: str, surface: Surface, work: Work) -> Route:
        return Route(path, endpoint(f"{method} {path}", surface, work), methods=[method])

    def stored(method: str, suffix: str, work: Work) -> Route:
        path = f"/v1/responses/{{response_id}}{suffix}"
        return Route(path, endpoint(f"{method} {path}", RESPONSES, work), methods=[method])

    kept = StoredResponseEndpoint(infrastructure.connector.connect(ResponseService, "router"))
    listing = ModelsEndpoint(router).serve
    reports = infrastructure.connector.connect(ReportService, "billing")
    # Its errors are the platform's own; the surface is never asked.
    export = ApiEndpoint(OPENAI, authenticator, "GET /api/usage/export", UsageExport(reports).serve)
    models = _by_version(*(endpoint("GET /v1/models", surface, listing) for surface in (OPENAI, ANTHROPIC)))
    connect = infrastructure.connector.connect
    generations = Generations(connect(JobService, "workflow"), connect(FileContentService, "workflow"))
    images, videos = ImagesEndpoint(generations, settings), VideosEndpoint(generations, settings)
    speech = SpeechEndpoint(
        generations,
        connect(MediaRouterService, "router"),
        connect(ConsentService, "workflow"),
        settings,
    )
    oversized = OversizedEndpoint(NATIVE, authenticator, "oversized", refuse)
    routes = [
        post("/v1/chat/completions", OPENAI, ChatEndpoint(OPENAI, router, limit).serve),
        post("/v1/responses", RESPONSES, ChatEndpoint(RESPONSES, router, limit).serve),
        stored("GET", "", kept.get),
        stored("DELETE", "", kept.delete),
        stored("POST", "/cancel", kept.cancel),
        stored("GET", "/input_items", kept.input_items),
        post("/v1/messages", ANTHROPIC, ChatEndpoint(ANTHROPIC, router, limit).serve),
        post("/v1/messages/count_tokens", ANTHROPIC, CountTokensEndpoint(router, limit).serve),
        post("/v1/router/debug", NATIVE, DebugEndpoint(router, limit).serve),
        post("/v1/embeddings", OPENAI, EmbeddingsEndpoint(router, limit).serve),
        Route("/api/usage/export", export, methods=["GET"]),
        post("/v1/images/generations", OPENAI, images.generate),
        post("/v1/images/edits", OPENAI, images.edit),
        post("/v1/audio/speech", OPENAI, speech.serve),
        post("/v1/audio/transcriptions", OPENAI, TranscriptionsEndpoint(generations, settings).serve),
        post("/v1/videos", OPENAI, videos.create),
        route("GET", "/v1/videos", OPENAI, videos.list_all),
        route("GET", "/v1/videos/{video_id}", OPENAI, videos.retrieve),
        route("DELETE", "/v1/videos/{video_id}", OPENAI, videos.remove),
        route("GET", "/v1/videos/{video_id}/content", OPENAI, videos.download),
        post("/v1/videos/{video_id}/remix", OPENAI, videos.remix),
        Route(PATH, oversized, methods=METHODS),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", models, methods=["GET"]),
    ]
    return Service(name="gateway", routes=routes, stop=generations.stop)
