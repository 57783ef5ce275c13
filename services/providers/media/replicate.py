"""Replicate: predictions of models, versions and deployments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaInput, MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from yarl import URL

from services.formats.errors import invalid
from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error
from services.providers.domain.failure import ForgedWebhookError, ProviderError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.fetching import FetchingMediaAdapter
from services.providers.media.http_adapter import PHRASES, number, texts, whole
from services.providers.media.parameters import Word, plain, write
from services.providers.media.signing_keys import SigningKeys
from services.providers.settings import ProviderSettings

_PAGES = 3
# Our clock and theirs.
_CLOCKS_S = 60.0
_PERCENT = re.compile(r"(\d{1,3})%\|")
_VERSION = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_STATES = {"starting": "queued", "processing": "running", "succeeded": "succeeded", "canceled": "cancelled"}
_ENDED_BADLY = frozenset({"failed", "canceled", "aborted"})
_ERRORS = ErrorTable(
    codes={},
    phrases=(
        ("(e005)", "CONTENT_FILTERED"),
        ("please retry", "PROVIDER_OVERLOADED"),
        ("(e004)", "PROVIDER_OVERLOADED"),
        ("(e003)", "PROVIDER_OVERLOADED"),
        ("insufficient credit", "PROVIDER_BILLING"),
        ("spend limit", "PROVIDER_BILLING"),
        *PHRASES,
    ),
)
_PICTURE: Mapping[str, Word] = {
    "prompt": "prompt",
    "count": "num_outputs",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "strength": "prompt_strength",
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
        "init_image": "image",
        "style": "style",
    },
    "image_edit": {
        **_PICTURE,
        "images": lambda value: {"image": plain(value[0])} if len(value) == 1 else {"images": plain(value)},
        "mask": "mask",
    },
    "upscale": {
        "file": lambda value: {"video" if value.mime.startswith("video/") else "image": plain(value)},
        "factor": "scale",
        "prompt": "prompt",
    },
    "video": {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "duration_s": "duration",
        "frames_per_second": "fps",
        "width": "width",
        "height": "height",
        "aspect_ratio": "aspect_ratio",
        "seed": "seed",
        "first_frame": "image",
        "last_frame": "last_frame",
    },
    "speech": {"text": "text", "voice": "voice", "speed": "speed", "language": "language"},
    "transcription": {
        "audio": "audio",
        "language": "language",
        "prompt": "prompt",
        "diarise": "diarize",
        "temperature": "temperature",
    },
}


class ReplicateAdapter(FetchingMediaAdapter):
    """Speaks to api.replicate.com. A prediction that may have begun is looked for, never asked for again."""

    adapter = "replicate"
    abilities = Abilities(kinds=frozenset(_WORDS), cancels=True, webhooks=True, finds=True)
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self.keys = SigningKeys(self._fetch_secret)

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Create a prediction, and wait a moment for its result."""
        path, version = _place(attempt.model)
        written = write(attempt, _words(attempt.input))
        document: dict[str, Any] = {"input": written.values, **({"version": version} if version else {})}
        if attempt.webhook_url:
            document |= {"webhook": attempt.webhook_url, "webhook_events_filter": ["completed"]}
        headers = {"Prefer": f"wait={self.settings.wait_s}"} if self.settings.wait_s else {}
        answer = await self.begin(path, document, attempt, headers=headers)
        prediction = answer.object(self.failures(attempt.model))
        if not texts(prediction.get("id")):
            error = self.failures(attempt.model).of("PROVIDER_PROTOCOL", "made a prediction without an id")
            error.metadata["accepted"] = "unknown"
            raise error
        return pb.SubmitMediaResponse(
            provider_job_id=prediction["id"],
            progress=self._progress(prediction, attempt.model),
            receipt=written.receipt,
            provider_request_id=prediction["id"],
        )

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a prediction is."""
        prediction = await self._prediction("GET", request.provider_job_id, request.model)
        return self._progress(prediction, request.model)

    async def cancel(self, request: pb.CancelMediaRequest) -> str:
        """Cancel a prediction; one that has ended stays as it is."""
        try:
            prediction = await self._prediction("POST", request.provider_job_id, request.model, "/cancel")
        except ProviderError as error:
            if error.reason == "NOT_FOUND":
                return "unknown"
            raise
        ended = texts(prediction.get("status")) in ("succeeded", "failed", "aborted")
        return "already_ended" if ended else "requested"

    async def _prediction(self, method: str, identifier: str, model: str, verb: str = "") -> dict[str, Any]:
        failures = self.failures(model)
        path = f"/predictions/{self.check_id(identifier, model)}{verb}"
        try:
            answer = await self.inquire(path, failures, method)
        except ProviderError as error:
            if error.metadata.get("http_status") == "404":
                raise self.forgotten(model) from None
            raise
        return answer.object(failures)

    async def find(self, request: pb.FindMediaRequest) -> str:
        """Look through the latest predictions for one with the input of the attempt.

        The vendor keeps no reference of ours: an equal prediction that is known to be of another attempt must
        be named in `known`.
        """
        path, version = _place(request.model)
        wanted = write(request.attempt, _words(request.attempt.input)).values
        failures = self.failures(request.model)
        found: list[tuple[float, str]] = []
        query: dict[str, str] = {}
        for _ in range(_PAGES):
            page = (await self.inquire("/predictions", failures, query=query)).object(failures)
            results = page.get("results")
            rows = [row for row in results if isinstance(row, dict)] if isinstance(results, list) else []
            for row in rows:
                created = _seconds(row.get("created_at"))
                if created >= request.since - _CLOCKS_S and _is_it(row, path, version, wanted):
                    found.append((created, texts(row.get("id"))))
            query = _cursor(page.get("next"))
            if not query or not rows or _seconds(rows[-1].get("created_at")) < request.since - _CLOCKS_S:
                break
        return next((name for _, name in sorted(found) if name and name not in request.known), "")

    def _progress(self, prediction: Mapping[str, Any], model: str) -> pb.MediaProgress:
        """Return what a prediction says. A status that is new here is not the end."""
        status = texts(prediction.get("status"))
        progress = pb.MediaProgress(state=_STATES.get(status, "running"))
        logs = texts(prediction.get("logs"))
        usage = _usage(prediction)
        if status == "failed":
            message = texts(prediction.get("error")) or "the prediction failed"
            # Unless the vendor says that it may pass, the model would fail again, and be paid again.
            progress = self.failed(model, message)
            progress.retryable = progress.reason in ("PROVIDER_OVERLOADED", "PROVIDER_RATE_LIMITED")
            progress.unbilled = not usage.compute_seconds
        elif status == "aborted":
            error = self.failures(model).of("PROVIDER_TIMEOUT", "aborted: it did not start in time")
            progress = self.progress_of(error, retryable=True, unbilled=True)
        elif status == "canceled":
            progress.unbilled = not usage.compute_seconds
        elif status == "succeeded":
            progress.outputs.extend(self._outputs(prediction.get("output"), model))
            usage.images = sum(each.facts.mime.startswith("image/") for each in progress.outputs)
        elif percents := _PERCENT.findall(logs):
            progress.fraction = min(1.0, int(percents[-1]) / 100)
        progress.logs.extend(line[:1000] for line in logs.splitlines()[-100:] if line)
        progress.usage.CopyFrom(usage)
        return progress

    def _outputs(self, output: object, model: str) -> list[pb.ProviderOutput]:
        """Return what was made: an address, a text, a list or an object of them, by the model."""
        failures = self.failures(model)
        addresses = _addresses(output)
        if addresses:
            return [
                self.output(address, MediaOutput(mime=_mime_of(address)), failures) for address in addresses
            ]
        if output is None:
            raise failures.of("PROVIDER_PROTOCOL", "the prediction succeeded without an output")
        if isinstance(output, str):
            return [pb.ProviderOutput(text=output)]
        if isinstance(output, list) and all(isinstance(each, str) for each in output):
            return [pb.ProviderOutput(text="".join(output))]
        details = output if isinstance(output, dict) else {"output": output}
        facts = MediaOutput(details_json=msgspec.json.encode(details).decode())
        text = texts(details.get("text")) or texts(details.get("transcription"))
        return [pb.ProviderOutput(text=text, facts=facts)]

    async def read_webhook(self, headers: Mapping[str, str], body: bytes) -> pb.ReadWebhookResponse:
        """Return what a notification says, once its signature and age have been checked."""
        await self._check_signature(headers, body)
        try:
            prediction = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            prediction = None
        if not isinstance(prediction, dict) or not texts(prediction.get("id")):
            raise invalid("body", "expected a prediction")
        return pb.ReadWebhookResponse(
            event_id=headers["webhook-id"],
            provider_job_id=prediction["id"],
            progress=self._progress(prediction, texts(prediction.get("model"))),
        )

    async def _check_signature(self, headers: Mapping[str, str], body: bytes) -> None:
        problem = _problem(await self.keys.current(), headers, body)
        if problem == "No matching signature found":
            problem = _problem(await self.keys.renewed(), headers, body)
        if problem:
            raise ForgedWebhookError(self.name, problem)

    async def _fetch_secret(self) -> list[Webhook]:
        failures = self.failures("")
        answer = await self.inquire("/webhooks/default/secret", failures)
        key = texts(answer.object(failures).get("key"))
        try:
            return [Webhook(key)]
        except (ValueError, RuntimeError):
            raise failures.of("PROVIDER_PROTOCOL", "gave no secret that signs notifications") from None

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what the problem that came in place of an answer says."""
        facts = read_error(body)
        return ErrorFacts(message=facts.message, kind=facts.kind, found=True) if facts.message else facts


def _words(given: MediaInput) -> Mapping[str, Word]:
    return _WORDS[given.WhichOneof("kind") or ""]


def _place(model: str) -> tuple[str, str]:
    """Return where predictions of a model are made, and the version to name. Raises FormatError."""
    name, _, version = model.partition(":")
    parts = name.split("/")
    deployment = parts[0] == "deployments"
    fine = all(_NAME.fullmatch(part) and part not in (".", "..") for part in parts)
    if _VERSION.fullmatch(model):
        return "/predictions", model
    if fine and len(parts) == 2 and not deployment and version:
        return "/predictions", version
    if fine and not version and len(parts) == (3 if deployment else 2):
        return f"/{name if deployment else f'models/{name}'}/predictions", ""
    raise invalid(
        "model",
        f"{model!r} is none of owner/name, owner/name:version, a version's id and deployments/owner/name",
    )


def _is_it(row: Mapping[str, Any], path: str, version: str, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a listed prediction is of this model and input, and may still bring a result."""
    given = row.get("input")
    if not isinstance(given, dict) or row.get("status") in _ENDED_BADLY:
        return False
    if version:
        same = texts(row.get("version")) == version
    else:
        same = path.endswith(f"/{texts(row.get('model'))}/predictions") or path.startswith("/deployments/")
    # Files may have been moved to an address of the vendor's.
    plain_values = {name: value for name, value in wanted.items() if not _addresses(value)}
    return same and all(given.get(name) == value for name, value in plain_values.items())


def _cursor(following: object) -> dict[str, str]:
    """Return the query of the next page: only its cursor is taken, never its address."""
    cursor = URL(following).query.get("cursor", "") if isinstance(following, str) else ""
    return {"cursor": cursor} if cursor else {}


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(texts(text)).timestamp()
    except ValueError:
        return 0.0


def _addresses(value: object, depth: int = 3) -> list[str]:
    """Return the addresses of files in an output, wherever they stand."""
    if isinstance(value, str):
        return [value] if value.startswith(("https://", "http://", "data:")) else []
    if depth == 0:
        return []
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [address for each in list(nested)[:100] for address in _addresses(each, depth - 1)]


def _mime_of(address: str) -> str:
    """Return the type that the name of a file tells; the content is looked at later."""
    ending = address.partition("?")[0].rpartition(".")[2].lower()
    return _MIMES.get(ending, "")


_MIMES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def _usage(prediction: Mapping[str, Any]) -> MediaUsage:
    metrics = prediction.get("metrics")
    if not isinstance(metrics, dict):
        return MediaUsage()
    usage = MediaUsage(compute_seconds=number(metrics.get("predict_time")))
    usage.seconds = number(metrics.get("video_output_duration_seconds"))
    usage.raw_json = msgspec.json.encode(metrics).decode()
    read, written = whole(metrics.get("input_token_count")), whole(metrics.get("output_token_count"))
    if read or written:
        usage.tokens.input_total, usage.tokens.output_total = read, written
    return usage


def _problem(secrets: Sequence[Webhook], headers: Mapping[str, str], body: bytes) -> str:
    """Return what is wrong with a notification; empty when one of the secrets has signed it."""
    problem = "No matching signature found"
    for secret in secrets:
        try:
            secret.verify(body, dict(headers), json_parse=False)
        except WebhookVerificationError as error:
            problem = str(error)
        except ValueError:
            problem = "its signature cannot be read"
        else:
            return ""
    return problem
