"""The columns of the matrix: who is asked, how, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import anthropic_messages, openai_chat, openai_responses
from services.providers.settings import ProviderSettings
from tests.support import event_stream, ollama_wire
from tests.support.fault_server import Head, Send, Step, answer, sse
from tests.support.providers import KEY, KEY_ID, REGION
from tests.support.vendors import answers, refusals
from tests.support.vendors.answers import TEXT, Said
from tests.support.vendors.refusals import Refusals

CHAT = WireFormat.WIRE_FORMAT_OPENAI_CHAT
RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
MESSAGES = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
MODULES: Mapping[int, Any] = {
    CHAT: openai_chat,
    RESPONSES: openai_responses,
    MESSAGES: anthropic_messages,
}
SSE, LINES = "text/event-stream", "application/x-ndjson"
PROMPT = "a secret prompt"
_HI = [{"role": "user", "content": PROMPT}]
BODIES: Mapping[int, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": _HI, "max_tokens": 50},
    RESPONSES: {"model": "m", "input": PROMPT, "max_output_tokens": 50},
    MESSAGES: {"model": "m", "messages": _HI, "max_tokens": 50},
}


def _events(*documents: Any) -> bytes:
    return sse(*documents, event=True)


@dataclass(frozen=True)
class Vendor:
    """One column. The suite knows some by name, and so do its settings."""

    name: str
    path: str
    """Where its API begins, below the address."""
    encode: Callable[..., bytes]
    """Writes documents as frames."""
    content_type: str
    text: Said
    call: Said | None
    calls: Said | None
    refusals: Refusals
    usage: tuple[int, int]
    """Tokens of input and output in `text`."""
    reports: tuple[str, str]
    """Model and id of `text`; empty where the vendor names none."""
    raw_format: int = 0
    """The callers' format whose bodies it is sent as they are."""
    is_typed: bool = True
    """It is asked with what other formats said."""
    model: str = "some/model"
    adapter: str = ""
    bad_frame: bytes = b'data: {"choices": [{"delta": {"content": \n\n'
    half_frame: bytes = b'data: {"id": "x", "cho'
    large_frame: bytes = b"data: "
    """The start of a frame that has no end."""

    def settings(self, url: str, **limits: float) -> ProviderSettings:
        """Return its settings at this address; limits in seconds."""
        given: dict[str, Any] = {"base_url": url + self.path, "api_key": KEY, "timeouts": limits}
        if self.adapter:
            given["adapter"] = self.adapter
        if self.raw_format in (CHAT, RESPONSES):
            given["responses"] = self.raw_format == RESPONSES
        if self.adapter == "bedrock":
            del given["api_key"]
            given |= {"region": REGION, "access_key_id": KEY_ID, "secret_access_key": KEY}
        return ProviderSettings.model_validate(given)

    def script(self, *pieces: bytes) -> list[Step]:
        """Return a stream sent in these pieces."""
        return [Head(content_type=self.content_type), *map(Send, pieces)]

    def frames(self, said: Said | None = None) -> bytes:
        """Return all frames of an answer."""
        return self.encode(*(said or self.text).frames)

    def begun(self) -> bytes:
        """Return the frames of a stream that has said all of its text and not how it ended."""
        return self.encode(*self.text.frames[: self.text.begun])

    def good(self, streamed: bool, said: Said | None = None) -> Sequence[Step]:
        """Return a good answer."""
        return self.script(self.frames(said)) if streamed else answer((said or self.text).whole)


@dataclass(frozen=True)
class Ask:
    """A vendor, and whether it is asked with a body of its own format or a translated one."""

    vendor: Vendor
    raw: bool

    def attempt(self, body: dict[str, Any] | None = None, **fields: Any) -> pb.Attempt:
        """Return the attempt."""
        vendor = self.vendor
        if self.raw:
            document = json.dumps(body or BODIES[vendor.raw_format]).encode()
            wire_format: Any = vendor.raw_format
            return pb.Attempt(
                provider=vendor.name,
                model=vendor.model,
                raw_body=document,
                wire_format=wire_format,
                include_usage=True,
                **fields,
            )
        chat = ChatInput(messages=[Message(role="user", content=PROMPT)], max_tokens=50)
        return pb.Attempt(provider=vendor.name, model=vendor.model, chat=chat, **fields)

    @property
    def module(self) -> Any:
        """The format that a raw answer is in."""
        return MODULES[self.vendor.raw_format]


def _shaped(name: str, word: Callable[[Said], Said], no: Refusals, **more: Any) -> Vendor:
    """Return a vendor that speaks OpenAI's chat completions in its own way."""
    return Vendor(
        name=name,
        path="/v1",
        encode=sse,
        content_type=SSE,
        text=word(answers.OPENAI_TEXT),
        call=word(answers.OPENAI_CALL),
        calls=word(answers.OPENAI_CALLS),
        refusals=no,
        usage=(20, 9),
        reports=("gpt-x-2026", "chatcmpl-1"),
        raw_format=CHAT,
        **more,
    )


def _as_it_is(said: Said) -> Said:
    return said


_FRAME = event_stream.event("contentBlockDelta", b"x" * (16 * 2**20))[: 2**20]


def _bedrock(name: str, model: str, text: Said, **more: Any) -> Vendor:
    return Vendor(
        name=name,
        adapter="bedrock",
        path="",
        encode=event_stream.frames,
        content_type=event_stream.CONTENT_TYPE,
        text=text,
        refusals=refusals.BEDROCK,
        model=model,
        bad_frame=event_stream.with_bad_message_checksum(event_stream.frames(text.frames[1])),
        half_frame=event_stream.frames(text.frames[1])[:20],
        large_frame=_FRAME,
        **more,
    )


_ALL = (
    _shaped("openai", _as_it_is, refusals.OPENAI),
    Vendor(
        name="openai_responses",
        adapter="openai",
        path="/v1",
        encode=_events,
        content_type=SSE,
        text=answers.responses([TEXT]),
        call=answers.responses(answers.ONE),
        calls=answers.responses(answers.TWO),
        refusals=refusals.RESPONSES,
        usage=(20, 9),
        reports=("gpt-x-2026", "resp_1"),
        raw_format=RESPONSES,
        is_typed=False,
        bad_frame=b'event: response.output_text.delta\ndata: {"type": "response.outp\n\n',
        half_frame=b'event: response.completed\ndata: {"type": "resp',
    ),
    _shaped("groq", answers.groq, refusals.GROQ),
    _shaped("openrouter", answers.openrouter, refusals.OPENROUTER),
    _shaped("huggingface", answers.huggingface, refusals.HUGGINGFACE),
    _shaped("self_hosted", answers.vllm, refusals.SELF_HOSTED),
    Vendor(
        name="anthropic",
        adapter="anthropic",
        path="",
        encode=_events,
        content_type=SSE,
        text=answers.anthropic([TEXT]),
        call=answers.anthropic(answers.ONE),
        calls=answers.anthropic(answers.TWO),
        refusals=refusals.ANTHROPIC,
        usage=(20, 9),
        reports=("claude-x-2026", "msg_1"),
        raw_format=MESSAGES,
        bad_frame=b'event: content_block_delta\ndata: {"type": "content_bl\n\n',
        half_frame=b'event: message_stop\ndata: {"type": "mess',
    ),
    Vendor(
        name="gemini",
        adapter="gemini",
        path="",
        encode=sse,
        content_type=SSE,
        text=answers.GEMINI_TEXT,
        call=answers.GEMINI_CALL,
        calls=answers.GEMINI_CALLS,
        refusals=refusals.GEMINI,
        usage=(23, 13),
        reports=("gemini-x-2026", "resp-1"),
        bad_frame=b'data: {"candidates": [{"content": {"parts": [\n\n',
    ),
    _bedrock(
        "bedrock",
        "eu.anthropic.claude-x-20260101-v1:0",
        answers.CONVERSE_TEXT,
        call=answers.CONVERSE_CALL,
        calls=answers.CONVERSE_CALLS,
        usage=(20, 9),
        reports=("eu.anthropic.claude-x-20260101-v1:0", ""),
    ),
    _bedrock(
        "titan",
        "amazon.titan-text-express-v1",
        answers.TITAN_TEXT,
        call=None,
        calls=None,
        usage=(5, 8),
        reports=("amazon.titan-text-express-v1", ""),
    ),
    Vendor(
        name="ollama",
        adapter="ollama",
        path="",
        encode=ollama_wire.lines,
        content_type=LINES,
        text=answers.OLLAMA_TEXT,
        call=answers.OLLAMA_CALL,
        calls=answers.OLLAMA_CALLS,
        refusals=refusals.OLLAMA,
        usage=(26, 9),
        reports=("llama-x", ""),
        bad_frame=b'{"message": {"content": \n',
        half_frame=b'{"model": "x", "mess',
        large_frame=b"{",
    ),
)
VENDORS: Mapping[str, Vendor] = {vendor.name: vendor for vendor in _ALL}


def asks(*rows: int, without: Sequence[str] = (), only: Sequence[str] = (), one_way: bool = False) -> Any:
    """Parametrise a test over the vendors as the cells of these rows, asked in every way or in one."""
    given = []
    for vendor in _ALL:
        if vendor.name in without or (only and vendor.name not in only):
            continue
        marks = [pytest.mark.matrix(row=row, adapter=vendor.name) for row in rows]
        for raw, has in ((False, vendor.is_typed), (True, bool(vendor.raw_format))):
            if has and not (raw and one_way and vendor.is_typed):
                both = vendor.is_typed and vendor.raw_format and not one_way
                name = f"{vendor.name}-{'raw' if raw else 'typed'}" if both else vendor.name
                given.append(pytest.param(Ask(vendor, raw), id=name, marks=marks))
    return pytest.mark.parametrize("ask", given)
