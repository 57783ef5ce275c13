"""ComfyUI: graphs that the operator exported, filled in for each request; its history is the truth."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaFile, MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from yarl import URL

from services.formats.errors import invalid
from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error
from services.providers.domain.failure import UnsupportedError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.comfy_graph import JOB, SEED, Graph, GraphError
from services.providers.media.comfy_progress import ComfyProgress
from services.providers.media.fetching import FetchingMediaAdapter
from services.providers.media.http_adapter import PHRASES, number, rows, texts
from services.providers.media.parameters import Written, bytes_of, extension_of, fields_of
from services.providers.receipts import refuse_drops
from services.providers.settings import ProviderSettings

_HISTORY = "256"
# What nodes that save call their files.
_SAVED = ("images", "gifs", "videos", "video", "audio", "files")
_PLACES = frozenset({"output", "temp", "input"})
_MOST_CANCELLED = 1000
_LONGEST_RUN_S = 7 * 86_400
# The year 5138; also far below where numbers lose their milliseconds.
_LATEST_MS = 10**14
_ERRORS = ErrorTable(
    codes={"OutOfMemoryError": "PROVIDER_OVERLOADED", "torch.OutOfMemoryError": "PROVIDER_OVERLOADED"},
    phrases=PHRASES,
)


class ComfyAdapter(FetchingMediaAdapter):
    """Speaks to one server. Its WebSocket only shows progress: it may break at any time."""

    adapter = "comfyui"
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        if not settings.workflows:
            raise ValueError(
                f"providers.{name}.workflows: name at least one model and the file of its graph in API format"
            )
        self._graphs = {model: _read(name, model, each.file) for model, each in settings.workflows.items()}
        self._kinds = {model: each.kind for model, each in settings.workflows.items()}
        self.abilities = Abilities(kinds=frozenset(self._kinds.values()), cancels=True, finds=True)
        self._client = uuid.uuid4().hex
        self._progress = ComfyProgress(upstream, self._socket_url(), self.headers, self.failures(""))
        self._cancelled: dict[str, None] = {}

    def _socket_url(self) -> URL:
        scheme = "wss" if self.base.scheme == "https" else "ws"
        return self.url("/ws", {"clientId": self._client}).with_scheme(scheme)

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Put a graph into the server's queue."""
        graph = self._graph(attempt)
        failures = self.failures(attempt.model)
        written = await self._values(attempt, graph)
        await self._progress.listen()
        document = {
            "prompt": graph.filled(written.values),
            "client_id": self._client,
            "extra_data": {"omnihub_effect": attempt.effect_key},
        }
        answer = (await self.begin("/prompt", document, attempt)).object(failures)
        prompt_id = texts(answer.get("prompt_id"))
        if not prompt_id:
            error = failures.of("PROVIDER_PROTOCOL", "queued the graph without naming its id")
            error.metadata["accepted"] = "unknown"
            raise error
        self._progress.expect(prompt_id, len(graph))
        return pb.SubmitMediaResponse(
            provider_job_id=prompt_id,
            progress=pb.MediaProgress(state="queued"),
            receipt=written.receipt,
            provider_request_id=prompt_id,
        )

    def _graph(self, attempt: pb.MediaAttempt) -> Graph:
        graph = self._graphs.get(attempt.model)
        if graph is None:
            known = ", ".join(sorted(self._graphs))
            raise self.failures(attempt.model).of(
                "MODEL_NOT_FOUND", f"has no such graph; configured: {known}"
            )
        kind = attempt.input.WhichOneof("kind") or ""
        if kind != self._kinds[attempt.model]:
            message = f"{attempt.model} makes {self._kinds[attempt.model]}, not {kind}"
            raise UnsupportedError(self.name, message, "input")
        return graph

    async def _values(self, attempt: pb.MediaAttempt, graph: Graph) -> Written:
        """Return what fills the placeholders. Files are uploaded, but only once nothing else is wrong."""
        written = Written()
        files: dict[str, list[MediaFile]] = {}
        given = fields_of(attempt.input) | extension_of(attempt.input)
        for name, value in given.items():
            if name not in graph.placeholders or name == JOB:
                written.drop(name, "the graph has no such placeholder")
            elif isinstance(value, MediaFile):
                files[name] = [value]
            elif name == "images":
                files[name] = list(value)
            elif isinstance(value, str | int | float | bool):
                written.take(name, value, name)
            else:
                written.drop(name, "a graph takes texts, numbers and files")
        if attempt.strict:
            refuse_drops(self.name, written.receipt)
        for missing in sorted(graph.required - given.keys() - {JOB, SEED}):
            raise invalid(f"input.{attempt.input.WhichOneof('kind')}.{missing}", f"{attempt.model} needs it")
        # The same graph and seed would be answered from the server's cache.
        digest = hashlib.blake2b(attempt.effect_key.encode(), digest_size=4).digest()
        written.values.setdefault(SEED, int.from_bytes(digest, "big"))
        written.values[JOB] = attempt.effect_key
        for name, each in files.items():
            await self._upload(name, each, attempt, written)
        return written

    async def _upload(
        self, name: str, files: list[MediaFile], attempt: pb.MediaAttempt, written: Written
    ) -> None:
        contents = [bytes_of(file, self.name, name) for file in files]
        if len(contents) > 1:
            message = f"a graph of {self.name} takes one file as {name}, not {len(contents)}"
            raise UnsupportedError(self.name, message, name)
        written.values[name] = await self._uploaded(contents[0], attempt)
        written.receipt.append(
            ParameterReceipt(name=name, outcome="translated", detail="uploaded to the server")
        )

    async def _uploaded(self, data: bytes, attempt: pb.MediaAttempt) -> str:
        """Return the name that the server gave a file. The same content is uploaded under the same name."""
        failures = self.failures(attempt.model)
        file_name = f"omnihub-{hashlib.sha256(data).hexdigest()[:32]}"
        boundary = uuid.uuid4().hex
        with aiohttp.MultipartWriter("form-data", boundary) as form:
            form.append("input").set_content_disposition("form-data", name="type")
            form.append("true").set_content_disposition("form-data", name="overwrite")
            part = form.append(data, {"Content-Type": "application/octet-stream"})
            part.set_content_disposition("form-data", name="image", filename=file_name)
        body = await form.as_bytes()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        limits = self.limits(attempt)
        answer = await self.ask("POST", self.url("/upload/image"), failures, limits, body, headers)
        document = answer.object(failures)
        folder, given = texts(document.get("subfolder")), texts(document.get("name"))
        if not given:
            raise failures.of("PROVIDER_PROTOCOL", "took a file without naming it")
        return f"{folder}/{given}" if folder else given

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a prompt is: by the history, then by the queue; the WebSocket adds the fraction."""
        prompt_id = self.check_id(request.provider_job_id, request.model)
        entry = await self._entry(prompt_id, request.model)
        if entry is None:
            waiting = await self._waiting(prompt_id, request.model)
            if waiting is not None:
                await self._progress.listen()
                return waiting
            # It may have ended between the two questions.
            entry = await self._entry(prompt_id, request.model)
        if entry is not None:
            self._progress.forget(prompt_id)
            return self._ended(entry, request.model)
        if prompt_id in self._cancelled:
            return pb.MediaProgress(state="cancelled", unbilled=True)
        raise self.forgotten(request.model)

    async def _entry(self, prompt_id: str, model: str) -> dict[str, Any] | None:
        failures = self.failures(model)
        history = (await self.inquire(f"/history/{prompt_id}", failures)).object(failures)
        entry = history.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    async def _queue(self, model: str) -> tuple[list[Any], list[Any]]:
        """Return what runs and what waits: lists of [number, id, graph, extra data, ...]."""
        failures = self.failures(model)
        queue = (await self.inquire("/queue", failures)).object(failures)
        running, pending = queue.get("queue_running"), queue.get("queue_pending")
        return _rows(running), sorted(_rows(pending), key=lambda row: number(row[0]))

    async def _waiting(self, prompt_id: str, model: str) -> pb.MediaProgress | None:
        running, pending = await self._queue(model)
        if any(row[1] == prompt_id for row in running):
            progress = pb.MediaProgress(state="running")
            fraction = self._progress.fraction(prompt_id)
            if fraction is not None:
                progress.fraction = fraction
            return progress
        for position, row in enumerate(pending):
            if row[1] == prompt_id:
                return pb.MediaProgress(state="queued", queue_position=position)
        return None

    def _ended(self, entry: Mapping[str, Any], model: str) -> pb.MediaProgress:
        status = entry.get("status")
        status = status if isinstance(status, dict) else {}
        messages = {
            row[0]: row[1]
            for row in _rows(status.get("messages"))
            if isinstance(row[0], str) and isinstance(row[1], dict)
        }
        if "execution_interrupted" in messages:
            return pb.MediaProgress(state="cancelled", unbilled=True)
        if status.get("status_str") == "error" or "execution_error" in messages:
            error = messages.get("execution_error", {})
            kind = texts(error.get("exception_type"))
            text = texts(error.get("exception_message")) or "the graph failed"
            progress = self.failed(model, f"{texts(error.get('node_type'))}: {text}".strip(": "), kind)
            # The same graph on the same server fails the same way, unless it was short of memory.
            progress.retryable = progress.reason == "PROVIDER_OVERLOADED"
            progress.unbilled = True
            return progress
        return self._made(entry, messages, model)

    def _made(self, entry: Mapping[str, Any], messages: Mapping[str, Any], model: str) -> pb.MediaProgress:
        failures = self.failures(model)
        progress = pb.MediaProgress(state="succeeded")
        files = _files(entry.get("outputs"))
        kept = [file for file in files if file.get("type") == "output"] or files
        for file in kept:
            query = {name: texts(file.get(name)) for name in ("filename", "subfolder", "type")}
            if not _harmless(query):
                raise failures.of(
                    "PROVIDER_PROTOCOL", "named an output by a path that leads out of its folders"
                )
            reference = self.url("/view", query).relative()
            mime = _mime(query["filename"])
            progress.outputs.add(fetch_reference=str(reference), facts=MediaOutput(mime=mime))
        if not progress.outputs:
            message = (
                "made nothing: the graph saved no file; give the node that saves `{{job}}` in its "
                "filename_prefix, so that a cached run saves, too"
            )
            return self.progress_of(failures.of("PROVIDER_FAILED", message), retryable=False, unbilled=True)
        images = sum(each.facts.mime.startswith("image/") for each in progress.outputs)
        seconds = _seconds(messages)
        if seconds is None:
            # What it says it worked is paid for.
            message = (
                f"says that it worked for longer than {_LONGEST_RUN_S} s, or at no time that can be: set the "
                "clock of its machine"
            )
            return self.progress_of(failures.of("PROVIDER_PROTOCOL", message), retryable=False, unbilled=True)
        progress.usage.CopyFrom(MediaUsage(images=images, compute_seconds=seconds))
        return progress

    async def cancel(self, request: pb.CancelMediaRequest) -> str:
        """Take a prompt out of the queue, or interrupt it: never anybody else's."""
        prompt_id = self.check_id(request.provider_job_id, request.model)
        failures = self.failures(request.model)
        running, pending = await self._queue(request.model)
        if any(row[1] == prompt_id for row in pending):
            await self.tell("/queue", {"delete": [prompt_id]}, failures)
        elif any(row[1] == prompt_id for row in running):
            # Older servers interrupt whatever runs, and do not know the id: so it is looked for just before.
            await self.tell("/interrupt", {"prompt_id": prompt_id}, failures)
        else:
            known = await self._entry(prompt_id, request.model)
            return "unknown" if known is None else "already_ended"
        self._cancelled[prompt_id] = None
        if len(self._cancelled) > _MOST_CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]
        return "requested"

    async def find(self, request: pb.FindMediaRequest) -> str:
        """Look for the prompt that carries the effect's key, in the queue and in the history."""
        failures = self.failures(request.model)
        running, pending = await self._queue(request.model)
        query = {"max_items": _HISTORY}
        history = (await self.inquire("/history", failures, query=query)).object(failures)
        ended = _rows([entry.get("prompt") for entry in history.values() if isinstance(entry, dict)])
        for row in (*running, *pending, *ended):
            extra = row[3] if len(row) > 3 and isinstance(row[3], dict) else {}
            if extra.get("omnihub_effect") == request.effect_key:
                return texts(row[1])
        return ""

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what the server says of a graph: the error, and which nodes it means."""
        facts = read_error(body)
        try:
            document = msgspec.json.decode(body)
            nodes = document["node_errors"]
            details = [error for node in nodes.values() for error in node["errors"]]
            message = "; ".join(f"{each['message']}: {each.get('details', '')}" for each in details[:5])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            return facts
        return ErrorFacts(f"{facts.message} {message}".strip(), facts.kind, facts.code, found=True)


def _read(name: str, model: str, file: Any) -> Graph:
    """Return a graph. Raises ValueError, for an operator."""
    where = f"providers.{name}.workflows.{model}.file"
    try:
        return Graph(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None
    except GraphError as error:
        raise ValueError(f"{where}: {file.name} {error}") from None


def _rows(value: object) -> list[Any]:
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, list) and len(row) > 1]


def _files(outputs: object) -> list[dict[str, Any]]:
    nodes = outputs.values() if isinstance(outputs, dict) else ()
    found = []
    for node in nodes:
        for name in _SAVED if isinstance(node, dict) else ():
            found += rows(node.get(name))
    return found[:100]


def _harmless(query: Mapping[str, str]) -> bool:
    """Tell whether names of files stay within the folders of the server. They come from outside."""
    name, folder = query["filename"], query["subfolder"]
    if not name or query["type"] not in _PLACES:
        return False
    parts = folder.split("/") if folder else []
    unsafe = any(set(part) & set("\\\0:") or part in ("", ".", "..") for part in (*parts, name))
    return not unsafe and "/" not in name


def _mime(file_name: str) -> str:
    return _MIMES.get(file_name.rpartition(".")[2].lower(), "")


_MIMES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def _seconds(messages: Mapping[str, Any]) -> float | None:
    """Return how long the server worked, by the times in its messages, which are milliseconds.

    0 where it tells none, None where what it tells cannot be.
    """
    times = [messages.get(name, {}).get("timestamp") for name in ("execution_start", "execution_success")]
    if not all(isinstance(at, int | float) and not isinstance(at, bool) for at in times):
        return 0.0
    if not all(0 <= at < _LATEST_MS for at in times):
        return None
    seconds = (times[1] - times[0]) / 1000
    return max(0.0, seconds) if seconds <= _LONGEST_RUN_S else None
