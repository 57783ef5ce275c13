"""Automatic1111's Stable Diffusion web UI: one picture after the other, each within its call."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from omnihub.common.v1.media_pb2 import Lora, MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from PIL import UnidentifiedImageError

from services.common.late import late
from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error
from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.http_adapter import PHRASES, HttpMediaAdapter, number, place, rows, texts
from services.providers.media.parameters import Word, Written, bytes_of, fields_of, plain, write
from services.providers.settings import ProviderSettings

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = late("PIL.Image")

# The model that the server has loaded.
DEFAULT = "default"
_ERRORS = ErrorTable(
    codes={"OutOfMemoryError": "PROVIDER_OVERLOADED", "NansException": "PROVIDER_FAILED"},
    phrases=(("not found", "MODEL_NOT_FOUND"), *PHRASES),
)
_WORDS: Mapping[str, Word] = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "count": "n_iter",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "steps": "steps",
    "guidance": "cfg_scale",
    "strength": "denoising_strength",
    "style": lambda value: {"styles": [value]},
}


class Automatic1111Adapter(HttpMediaAdapter):
    """Speaks to one server. It works on one request at a time; the others wait here.

    The effect key is the id of the task, so that any replica can ask how far it is, or stop it.
    """

    adapter = "automatic1111"
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        kinds = frozenset({"image", "image_edit", "upscale"})
        self.abilities = Abilities(kinds=kinds, immediate=kinds, cancels=True, concurrency=1)
        self._turn = asyncio.Lock()

    def credential(self, key: str) -> dict[str, str]:
        """Return HTTP Basic: the key is `user:password`, as the server was given in --api-auth."""
        return {"Authorization": f"Basic {_encoded(key.encode())}"}

    def secrets(self, key: str) -> Sequence[str]:
        """Return the key in every form in which it could show."""
        return (key, _encoded(key.encode()), key.partition(":")[2])

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Make it, once it is its turn."""
        kind = attempt.input.WhichOneof("kind") or ""
        path, written = self._upscaling(attempt) if kind == "upscale" else self._picture(attempt, kind)
        async with self._turn:
            try:
                answer = await self.begin(path, written.values, attempt)
            except (ProviderError, asyncio.CancelledError) as error:
                if not isinstance(error, ProviderError) or error.metadata.get("accepted"):
                    # Nobody waits for it any more: the next one need not either.
                    await asyncio.shield(self._stop(attempt))
                raise
        failures = self.failures(attempt.model)
        document = answer.object(failures)
        progress = self._upscaled(document, failures) if kind == "upscale" else self._made(document, failures)
        return pb.SubmitMediaResponse(progress=progress, receipt=written.receipt)

    def _picture(self, attempt: pb.MediaAttempt, kind: str) -> tuple[str, Written]:
        words = dict(_WORDS)
        given = fields_of(attempt.input)
        start = given.get("init_image") or next(iter(given.get("images", ())), None)
        name = "init_image" if kind == "image" else "images"

        def pictures(value: Any) -> dict[str, Any]:
            files = [value] if kind == "image" else list(value)
            return {"init_images": [_encoded(bytes_of(file, self.name, name)) for file in files]}

        words[name] = pictures
        words["mask"] = lambda value: {"mask": _encoded(bytes_of(value, self.name, "mask"))}
        if given.get("format") == "png":
            words["format"] = lambda value: {}
        words["loras"] = lambda value: {"prompt": f"{given.get('prompt', '')}{_loras(value)}"}
        written = write(attempt, words)
        written.values |= {"send_images": True, "save_images": False}
        if attempt.effect_key:
            written.values["force_task_id"] = attempt.effect_key
        if attempt.model != DEFAULT:
            overridden = written.values.setdefault("override_settings", {})
            overridden["sd_model_checkpoint"] = attempt.model
        return f"/sdapi/v1/{'txt2img' if start is None else 'img2img'}", written

    def _upscaling(self, attempt: pb.MediaAttempt) -> tuple[str, Written]:
        words: Mapping[str, Word] = {
            "file": lambda value: {"image": _encoded(bytes_of(value, self.name, "file"))},
            "factor": "upscaling_resize",
        }
        written = write(attempt, words)
        written.values.setdefault("upscaling_resize", 2)
        written.values |= {"resize_mode": 0}
        if attempt.model != DEFAULT:
            written.values["upscaler_1"] = attempt.model
        return "/sdapi/v1/extra-single-image", written

    def _made(self, document: Mapping[str, Any], failures: Failures) -> pb.MediaProgress:
        """Return the pictures. The server may put a grid of them all first."""
        listed = document.get("images")
        info = _info(document.get("info"))
        first = info.get("index_of_first_image")
        start = first if isinstance(first, int) and 0 <= first <= 1 else 0
        seeds = info.get("all_seeds")
        seeds = seeds if isinstance(seeds, list) else [info.get("seed")]
        progress = pb.MediaProgress(state="succeeded")
        for index, text in enumerate(listed[start:] if isinstance(listed, list) else ()):
            output = _picture_of(text, failures)
            seed = seeds[index] if index < len(seeds) else None
            if isinstance(seed, int) and 0 <= seed < 2**32:
                output.facts.seed = seed
            progress.outputs.append(output)
        return _counted(progress, failures)

    def _upscaled(self, document: Mapping[str, Any], failures: Failures) -> pb.MediaProgress:
        output = _picture_of(document.get("image"), failures)
        return _counted(pb.MediaProgress(state="succeeded", outputs=[output]), failures)

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a task is. The result itself comes as the answer of the call that began it."""
        failures = self.failures(request.model)
        task = self.check_id(request.provider_job_id, request.model)
        answer = await self.tell("/internal/progress", {"id_task": task, "live_preview": False}, failures)
        state = answer.object(failures)
        if state.get("active"):
            fraction = min(1.0, number(state.get("progress")))
            return pb.MediaProgress(state="running", fraction=fraction)
        if state.get("queued"):
            return pb.MediaProgress(state="queued")
        if state.get("completed"):
            return pb.MediaProgress(state="running", fraction=1.0)
        raise self.forgotten(request.model)

    async def cancel(self, request: pb.CancelMediaRequest) -> str:
        """Interrupt a task, but only while it is the one that runs: the server interrupts whatever does."""
        try:
            progress = await self.poll(
                pb.PollMediaRequest(provider_job_id=request.provider_job_id, model=request.model)
            )
        except ProviderError as error:
            if error.reason == "NOT_FOUND":
                return "unknown"
            raise
        if progress.state != "running" or progress.fraction == 1.0:
            return "unknown" if progress.state == "queued" else "already_ended"
        await self.inquire("/sdapi/v1/interrupt", self.failures(request.model), "POST")
        return "requested"

    async def _stop(self, attempt: pb.MediaAttempt) -> None:
        with contextlib.suppress(ProviderError):
            await self.cancel(pb.CancelMediaRequest(provider_job_id=attempt.effect_key, model=attempt.model))

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what the server says: its exception, or what is wrong with which field."""
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return read_error(body)
        if not isinstance(document, dict):
            return ErrorFacts()
        detail, errors = document.get("detail"), texts(document.get("errors"))
        messages = "; ".join(f"{place(row.get('loc'))}: {texts(row.get('msg'))}" for row in rows(detail))
        code = texts(document.get("error"))
        return ErrorFacts(messages or texts(detail) or errors or code, code=code, found=True)


def _loras(value: Sequence[Lora]) -> str:
    return "".join(f" <lora:{each.name}:{plain(each.weight or 1.0):g}>" for each in value)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _info(value: object) -> dict[str, Any]:
    """Return what the server says about the pictures: JSON, as a text within the JSON."""
    try:
        document = msgspec.json.decode(texts(value))
    except msgspec.DecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _picture_of(text: object, failures: Failures) -> pb.ProviderOutput:
    """Return a picture that came as base64. Raises PROVIDER_PROTOCOL when it is none."""
    try:
        data = base64.b64decode(texts(text).rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            mime = Image.MIME.get(picture.format or "", "")
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise failures.of("PROVIDER_PROTOCOL", "sent a picture that cannot be read") from None
    return pb.ProviderOutput(data=data, facts=MediaOutput(mime=mime, width=width, height=height))


def _counted(progress: pb.MediaProgress, failures: Failures) -> pb.MediaProgress:
    if not progress.outputs:
        raise failures.of("PROVIDER_PROTOCOL", "answered without a picture")
    pixels = sum(each.facts.width * each.facts.height for each in progress.outputs)
    progress.usage.CopyFrom(MediaUsage(images=len(progress.outputs), megapixels=pixels / 1e6))
    return progress
