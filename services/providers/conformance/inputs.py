"""Input that is not plain English of moderate length."""

from __future__ import annotations

import io
import wave

from omnihub.common.v1.chat_pb2 import MediaPart, Message, Part

from services.providers.conformance.answers import PIXEL, REFUSALS
from services.providers.conformance.calls import said_in
from services.providers.conformance.failures import check_details
from services.providers.conformance.kit import (
    CALL_TIMEOUT_S,
    QUESTION,
    Group,
    SkippedError,
    Subject,
    require,
)
from services.providers.conformance.streams import judge
from services.providers.domain.failure import ATTEMPT_REASONS

GROUP = Group("inputs")
SCRIPTS = ("Zażółć gęślą jaźń", "你好世界", "שלום עולם", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 🏳️‍🌈 𝄞")
# One empty page.
PAGE = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)
LARGE = 8 * 2**20
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@GROUP.check("INPUT-1", needs=["chat|stream"])
async def any_script(subject: Subject) -> None:
    """Characters of several bytes come back whole, if they come back."""
    attempt = await subject.attempt("Repeat exactly: " + " | ".join(SCRIPTS))
    for feature, ask in (("chat", subject.chat), ("stream", subject.stream)):
        if not subject.offers(feature):
            continue
        reply = await ask(attempt)
        require(reply.status.ok, "INPUT-1", f"text of several scripts ended {feature} with {reply.status}")
        if feature == "stream":
            judge(reply, attempt)
        text = said_in(reply, feature == "stream")
        require(REPLACEMENT not in text, "INPUT-1", f"{feature}: a character was cut in half")
        garbled = [script for script in SCRIPTS if script.encode().decode("latin-1") in text]
        require(not garbled, "INPUT-1", f"{feature}: {garbled} came back read as another encoding")


@GROUP.check("INPUT-2", "ERROR-1", needs=["chat|stream"])
async def large_request(subject: Subject) -> None:
    """More than gRPC takes by default, and than a model reads."""
    word = "x" * 99 + " "
    attempt = await subject.attempt(word * (LARGE // len(word)), max_tokens=16)
    status = (await subject.ask(attempt, CALL_TIMEOUT_S)).status
    if not status.ok:
        bare = f"{status}; raise the server's limit of a message to 64 MiB"
        require(status.detailed or status.code != "RESOURCE_EXHAUSTED", "INPUT-2", bare)
        check_details(status)
        require(status.reason in ATTEMPT_REASONS, "INPUT-2", f"refused with {status.reason}")
    again = await subject.ask(await subject.attempt())
    require(again.status.ok, "INPUT-2", f"after a large request a call ended with {again.status}")


@GROUP.check("INPUT-3", needs=["chat|stream"])
async def instructions(subject: Subject) -> None:
    """What stands above the conversation, under both of its names."""
    messages = [
        Message(role="system", content="Be kind."),
        Message(role="developer", content="Be short."),
        Message(role="user", content=QUESTION),
    ]
    status = (await subject.ask(await subject.attempt(messages=messages))).status
    require(status.ok, "INPUT-3", f"with instructions of system and developer a call ended with {status}")


def _silence() -> bytes:
    """Return a tenth of a second of it."""
    written = io.BytesIO()
    with wave.open(written, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(3200))
    return written.getvalue()


def _media() -> dict[str, Part]:
    """Return the smallest of each kind, by the feature that offers it."""
    return {
        "vision": Part(image=MediaPart(data=PIXEL, mime="image/png")),
        "documents": Part(document=MediaPart(data=PAGE, mime="application/pdf", name="page.pdf")),
        "audio": Part(audio=MediaPart(data=_silence(), mime="audio/wav")),
    }


@GROUP.check("INPUT-4", needs=["chat", "vision|documents|audio"])
async def media(subject: Subject) -> None:
    """Each kind that is offered."""
    answered = False
    for feature, part in _media().items():
        if not subject.offers(feature):
            continue
        text = Part()
        text.text.text = "What is this?"
        messages = [Message(role="user", parts=[text, part])]
        reply = await subject.chat(await subject.attempt(messages=messages))
        if reply.status.reason in REFUSALS:  # A provider may have models of both kinds.
            continue
        require(reply.status.ok, "INPUT-4", f"{feature} is offered, but ended with {reply.status}")
        answered = True
        entries = [entry for entry in reply.message.receipt if entry.outcome == "dropped"]
        lost = [entry.name for entry in entries if entry.name.startswith("messages")]
        require(not lost, "INPUT-4", f"{feature} is offered, but the receipt drops {', '.join(lost)}")
    if not answered:
        raise SkippedError("the model refuses each kind that its provider offers")
