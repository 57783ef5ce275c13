"""fal.ai: everything through its queue, answers by poll or by signed notification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from omnihub.common.v1.media_pb2 import Lora, MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from yarl import URL

from services.formats.errors import invalid
from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error
from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.fal_signatures import REQUEST_ID, check_signature, public_key
from services.providers.media.http_adapter import PHRASES, Answer, HttpMediaAdapter, number, texts, whole
from services.providers.media.parameters import Word, plain, write
from services.providers.media.signing_keys import SigningKeys
from services.providers.settings import ProviderSettings

KEYS_URL = "https://rest.fal.ai/.well-known/jwks.json"
_MOST_KEYS = 20
_NAMESPACES = ("workflows", "comfy")
_ERRORS = ErrorTable(
    codes={
        "request_timeout": "PROVIDER_TIMEOUT",
        "startup_timeout": "PROVIDER_OVERLOADED",
        "runner_scheduling_failure": "PROVIDER_OVERLOADED",
        "runner_connection_timeout": "PROVIDER_OVERLOADED",
        "runner_disconnected": "PROVIDER_FAILED",
        "runner_connection_refused": "PROVIDER_FAILED",
        "runner_connection_error": "PROVIDER_FAILED",
        "runner_server_error": "PROVIDER_FAILED",
        "internal_server_error": "PROVIDER_FAILED",
        "internal_error": "PROVIDER_FAILED",
        "client_cancelled": "CANCELLED",
        "client_disconnected": "CANCELLED",
        "content_policy_violation": "CONTENT_FILTERED",
        "no_media_generated": "PROVIDER_FAILED",
        "image_too_large": "PROVIDER_REJECTED",
        "image_too_small": "PROVIDER_REJECTED",
        "image_load_error": "PROVIDER_REJECTED",
        "file_download_error": "PROVIDER_REJECTED",
        "bad_request": "PROVIDER_REJECTED",
        "concurrent_requests_limit": "PROVIDER_CONCURRENCY",
    },
    phrases=(
        ("exhausted balance", "PROVIDER_BILLING"),
        ("user is locked", "PROVIDER_BILLING"),
        ("concurrent requests", "PROVIDER_CONCURRENCY"),
        *PHRASES,
    ),
)


def _loras(value: Sequence[Lora]) -> dict[str, Any]:
    return {"loras": [{"path": each.name, "scale": plain(each.weight or 1.0)} for each in value]}


def _side(name: str) -> Word:
    return lambda value: {"image_size": {name: value}}


_PICTURE: Mapping[str, Word] = {
    "prompt": "prompt",
    "count": "num_images",
    "width": _side("width"),
    "height": _side("height"),
    "seed": "seed",
    "strength": "strength",
    "format": "output_format",
    "quality": "quality",
    "background": "background",
}
# What its models mostly call things; what one calls otherwise goes through extension_json.
_WORDS: Mapping[str, Mapping[str, Word]] = {
    "image": {
        **_PICTURE,
        "negative_prompt": "negative_prompt",
        "aspect_ratio": "aspect_ratio",
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "init_image": "image_url",
        "loras": _loras,
        "style": "style",
    },
    "image_edit": {
        **_PICTURE,
        "images": lambda value: (
            {"image_url": plain(value[0])} if len(value) == 1 else {"image_urls": plain(value)}
        ),
        "mask": "mask_url",
    },
    "upscale": {
        "file": lambda value: {"video_url" if value.mime.startswith("video/") else "image_url": plain(value)},
        "factor": "upscale_factor",
        "prompt": "prompt",
    },
    "video": {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "duration_s": lambda value: {"duration": f"{value:g}"},
        "frames_per_second": "fps",
        "aspect_ratio": "aspect_ratio",
        "seed": "seed",
        "first_frame": "image_url",
        "last_frame": "end_image_url",
    },
    "speech": {"text": "text", "voice": "voice", "speed": "speed", "language": "language"},
    "transcription": {
        "audio": "audio_url",
        "language": "language",
        "prompt": "prompt",
        "diarise": "diarize",
        "timestamps": lambda value: {"chunk_level": value[0]},
    },
}
_STATES = {"IN_QUEUE": "queued", "IN_PROGRESS": "running"}
_CANCELLED = {
    "CANCELLATION_REQUESTED": "requested",
    "OK": "requested",
    "ALREADY_COMPLETED": "already_ended",
    "NOT_FOUND": "unknown",
}


class FalAdapter(HttpMediaAdapter):
    """Speaks to queue.fal.run. Addresses of requests are made here: those in its answers are not followed."""

    adapter = "fal"
    abilities = Abilities(kinds=frozenset(_WORDS), cancels=True, webhooks=True)
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self.keys = SigningKeys(self._fetch_keys)

    def credential(self, key: str) -> dict[str, str]:
        """Return the vendor's own way to carry the key."""
        return {"Authorization": f"Key {key}"}

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Put one request into the queue."""
        failures = self.failures(attempt.model)
        app = _app(attempt.model)
        written = write(attempt, _WORDS[attempt.input.WhichOneof("kind") or ""])
        query = {"fal_webhook": attempt.webhook_url} if attempt.webhook_url else None
        headers = {"X-Fal-Queue-Priority": attempt.priority or "normal"}
        answer = await self.begin(f"/{app}", written.values, attempt, query, headers)
        accepted = answer.object(failures)
        request_id = texts(accepted.get("request_id"))
        if not request_id:
            error = failures.of("PROVIDER_PROTOCOL", "accepted the request without naming its id")
            error.metadata |= {"accepted": "unknown", "retryable": "false"}
            raise error
        return pb.SubmitMediaResponse(
            provider_job_id=request_id,
            progress=_waiting(accepted, "queued"),
            receipt=written.receipt,
            provider_request_id=answer.headers.get("x-fal-request-id", request_id),
        )

    def _request(self, model: str, provider_job_id: str) -> str:
        """Return the path of a request: below owner and alias, whatever path the model has."""
        parts = _app(model).split("/")
        size = 3 if parts[0] in _NAMESPACES else 2
        return f"/{'/'.join(parts[:size])}/requests/{self.check_id(provider_job_id, model)}"

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a request is, with its result when there is one."""
        failures = self.failures(request.model)
        path = self._request(request.model, request.provider_job_id)
        answer = await self._known(path + "/status", failures, query={"logs": "1"})
        status = answer.object(failures)
        state = texts(status.get("status"))
        if state == "COMPLETED":
            return await self._ended(request, path, status, failures)
        # A state that is new here is not the end.
        return _waiting(status, _STATES.get(state, "running"))

    async def _known(
        self, path: str, failures: Failures, method: str = "GET", query: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask about a request. Raises NOT_FOUND when there is none."""
        try:
            return await self.inquire(path, failures, method, query)
        except ProviderError as error:
            if error.metadata.get("http_status") == "404":
                raise self.forgotten(failures.model) from None
            raise

    async def _ended(
        self, request: pb.PollMediaRequest, path: str, status: Mapping[str, Any], failures: Failures
    ) -> pb.MediaProgress:
        kind = texts(status.get("error_type"))
        if status.get("error") or kind:
            return self._failure(request.model, texts(status.get("error")) or kind, kind)
        try:
            answer = await self._known(path, failures)
        except ProviderError as error:
            if error.reason in ("PROVIDER_REJECTED", "CONTENT_FILTERED"):
                # It is the request that has failed, not the question.
                return self.progress_of(error)
            raise
        progress = self._result(answer.document, request.model)
        metrics = status.get("metrics")
        if isinstance(metrics, dict):
            progress.usage.compute_seconds = number(metrics.get("inference_time"))
        units = answer.headers.get("x-fal-billable-units", "")
        if units.replace(".", "", 1).isdigit():
            progress.usage.provider_units = float(units)
        return progress

    def _failure(self, model: str, message: str, kind: str) -> pb.MediaProgress:
        progress = self.failed(model, message, kind)
        if progress.reason == "CANCELLED":
            return pb.MediaProgress(state="cancelled", message=progress.message)
        return progress

    def _result(self, document: object, model: str) -> pb.MediaProgress:
        """Return the end of a request that went well. Raises PROVIDER_PROTOCOL when nothing was made."""
        failures = self.failures(model)
        result = document if isinstance(document, dict) else {}
        progress = pb.MediaProgress(state="succeeded")
        flags = result.get("has_nsfw_concepts")
        for index, file in enumerate(_files(result)):
            facts = MediaOutput(
                mime=texts(file.get("content_type")),
                width=whole(file.get("width")),
                height=whole(file.get("height")),
                duration_s=number(file.get("duration")),
                flagged=isinstance(flags, list) and flags[index : index + 1] == [True],
            )
            if isinstance(result.get("seed"), int) and 0 <= result["seed"] < 2**32:
                facts.seed = result["seed"]
            progress.outputs.append(self.output(file["url"], facts, failures))
        if texts(result.get("text")):
            details = {name: value for name, value in result.items() if name != "text"}
            facts = MediaOutput(details_json=msgspec.json.encode(details).decode())
            progress.outputs.append(pb.ProviderOutput(text=result["text"], facts=facts))
        if not progress.outputs:
            raise failures.of(
                "PROVIDER_PROTOCOL", "finished the request without a file or a text in its result"
            )
        progress.usage.CopyFrom(_usage(progress.outputs))
        return progress

    async def cancel(self, request: pb.CancelMediaRequest) -> str:
        """Ask fal to stop. Only a request that waits is sure to."""
        failures = self.failures(request.model)
        path = self._request(request.model, request.provider_job_id) + "/cancel"
        try:
            answer = await self.inquire(path, failures, "PUT")
        except ProviderError as error:
            if error.metadata.get("http_status") == "404":
                return "unknown"
            if error.metadata.get("http_status") == "400":
                return "already_ended"
            raise
        return _CANCELLED.get(texts(answer.object(failures).get("status")), "requested")

    async def read_webhook(self, headers: Mapping[str, str], body: bytes) -> pb.ReadWebhookResponse:
        """Return what a notification says, once its signature and age have been checked."""
        await check_signature(self.name, self.keys, headers, body)
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = None
        if not isinstance(document, dict) or not texts(document.get("request_id")):
            raise invalid("body", "expected an object with request_id")
        return pb.ReadWebhookResponse(
            event_id=headers[REQUEST_ID],
            provider_job_id=document["request_id"],
            progress=self._notified(document),
        )

    def _notified(self, document: Mapping[str, Any]) -> pb.MediaProgress:
        payload = document.get("payload")
        if document.get("status") == "ERROR":
            facts = read_error(msgspec.json.encode(payload)) if isinstance(payload, dict) else ErrorFacts()
            facts = _with_details(facts, payload)
            message = facts.message or texts(document.get("error")) or "the request failed"
            return self._failure("", message, facts.kind or texts(document.get("error_type")))
        if document.get("status") != "OK" or not isinstance(payload, dict):
            # A result that did not fit into the notification: the next poll brings it.
            return pb.MediaProgress(state="running")
        return self._result(payload, "")

    async def _fetch_keys(self) -> list[Ed25519PublicKey]:
        """Return the vendor's public keys. They are asked for without our credential."""
        failures = self.failures("")
        url = URL(self.settings.webhook_keys_url or KEYS_URL)
        headers = {"Accept": "application/json", "User-Agent": "omnihub"}
        exchange = await self.upstream.send(url, headers, None, self.question(), failures, stream=False)
        document = (await self.read(exchange, failures, 2**16)).object(failures)
        listed = document.get("keys")
        found = [public_key(each) for each in listed[:_MOST_KEYS]] if isinstance(listed, list) else []
        keys = [key for key in found if key is not None]
        if not keys:
            raise failures.of("PROVIDER_PROTOCOL", "publishes no key that signs notifications")
        return keys

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what `detail` and the header of the error's type say."""
        facts = read_error(body)
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = None
        return _with_details(facts, document, headers.get("x-fal-error-type", ""))


def _with_details(facts: ErrorFacts, document: object, kind: str = "") -> ErrorFacts:
    """Return the facts of an error with `detail`: a text, or a list of what is wrong where."""
    if not isinstance(document, dict):
        return ErrorFacts(message=facts.message, kind=kind or facts.kind, found=facts.found)
    detail = document.get("detail")
    rows = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    messages = "; ".join(
        f"{'.'.join(map(str, row.get('loc') or []))}: {texts(row.get('msg'))}".strip(": ") for row in rows
    )
    return ErrorFacts(
        message=messages or texts(detail) or facts.message,
        kind=next((texts(row.get("type")) for row in rows), "") or texts(document.get("error_type")) or kind,
        param=next((str(row["loc"][-1]) for row in rows if row.get("loc")), ""),
        found=facts.found or "detail" in document,
    )


def _app(model: str) -> str:
    """Return the path of an application. Raises FormatError unless it has an owner and an alias."""
    parts = model.split("/")
    fine = all(part not in ("", ".", "..") and not set(part) & set("?#%\\") for part in parts)
    if not fine or len(parts) < (3 if parts[0] in _NAMESPACES else 2):
        raise invalid(
            "model", f"{model!r} is no application of fal: expected owner/alias, such as fal-ai/flux/dev"
        )
    return model


def _waiting(status: Mapping[str, Any], state: str) -> pb.MediaProgress:
    progress = pb.MediaProgress(state=state)
    if isinstance(status.get("queue_position"), int):
        progress.queue_position = whole(status["queue_position"])
    logs = status.get("logs")
    if isinstance(logs, list):
        lines = [texts(each.get("message")) for each in logs if isinstance(each, dict)]
        progress.logs.extend(line[:1000] for line in lines[-100:] if line)
    return progress


def _files(value: object, depth: int = 4) -> list[dict[str, Any]]:
    """Return every file that a result names, wherever it stands."""
    if depth == 0:
        return []
    if isinstance(value, list):
        return [file for each in value[:100] for file in _files(each, depth - 1)]
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("url"), str):
        return [value]
    return [file for each in value.values() for file in _files(each, depth - 1)]


def _usage(outputs: Sequence[pb.ProviderOutput]) -> MediaUsage:
    pictures = [each.facts for each in outputs if each.facts.width and each.facts.height]
    return MediaUsage(
        images=sum(each.facts.mime.startswith("image/") or each.facts in pictures for each in outputs),
        megapixels=sum(facts.width * facts.height for facts in pictures) / 1e6,
        seconds=sum(each.facts.duration_s for each in outputs),
    )
