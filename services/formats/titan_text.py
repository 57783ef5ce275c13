"""Amazon Titan: the bodies of its text and embedding models, which have no messages."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, ParameterReceipt, Part
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Answer, Event, Progress
from services.formats.bedrock_converse import EXCEPTION, read_exception
from services.formats.documents import from_decode_error, says_something, write_object
from services.formats.errors import invalid, unsupported
from services.formats.media import decode_base64
from services.formats.messages import account_for
from services.formats.receipts import Receipts
from services.formats.search_results import as_text
from services.formats.usage import believable, reported

_REASONS = {
    "FINISH": "stop",
    "FINISHED": "stop",
    "STOP_CRITERIA_MET": "stop",
    "LENGTH": "length",
    "CONTENT_FILTERED": "content_filter",
}
_SPEAKERS = {"user": "User: ", "assistant": "Bot: "}


def write_request(
    chat: ChatInput, model: str, *, output_cap: int = 0
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a prompt. Raises FormatError for content that is no text."""
    receipts = Receipts()
    receipts.translated("model", model)
    receipts.translated("messages", "as one prompt")
    config: dict[str, Any] = {}
    if chat.HasField("max_tokens"):
        config["maxTokenCount"] = chat.max_tokens
        receipts.translated("max_tokens", "textGenerationConfig.maxTokenCount")
    elif output_cap:
        config["maxTokenCount"] = output_cap
        receipts.added("max_tokens", str(output_cap))
    if chat.HasField("temperature"):
        config["temperature"] = min(chat.temperature, 1.0)
        if chat.temperature > 1:
            receipts.clamped("temperature", "1, the largest of this model")
        else:
            receipts.forwarded("temperature")
    if chat.HasField("top_p"):
        config["topP"] = chat.top_p
        receipts.translated("top_p", "textGenerationConfig.topP")
    if chat.stop:
        config["stopSequences"] = list(chat.stop)
        receipts.translated("stop", "textGenerationConfig.stopSequences")
    _drop(chat, receipts)
    fields: dict[str, Any] = {"inputText": _prompt(chat, receipts)}
    if config:
        fields["textGenerationConfig"] = config
    return write_object(fields), receipts.all()


def _drop(chat: ChatInput, receipts: Receipts) -> None:
    given = {
        "tools": bool(chat.tools),
        "tool_choice": bool(chat.tool_choice.mode),
        "parallel_tool_calls": chat.HasField("parallel_tool_calls"),
        "response_format": bool(chat.response_schema_json),
        "reasoning_effort": bool(chat.reasoning_effort),
        "seed": chat.HasField("seed"),
        "top_k": chat.HasField("top_k"),
        "user": bool(chat.user),
    }
    given |= {name: says_something(name, text) for name, text in chat.extension_json.items()}
    for name, was_given in given.items():
        if was_given:
            receipts.dropped(name, "this model takes text and four parameters only")


def _prompt(chat: ChatInput, receipts: Receipts) -> str:
    instructions: list[str] = []
    turns: list[str] = []
    for index, message in enumerate(as_text(chat.messages, receipts)):
        text = _text(message, f"messages[{index}]", receipts)
        if message.role in _SPEAKERS:
            turns.append(_SPEAKERS[message.role] + text)
        else:
            instructions.append(text)
    return "\n".join([*instructions, *turns, "Bot:"])


def _text(message: Message, path: str, receipts: Receipts) -> str:
    if message.role == "tool":
        raise unsupported(f"{path}.role", "this model knows no tools")
    if message.name:
        receipts.dropped(f"{path}.name", "this model's speakers have no name")
    for name, text in message.extension_json.items():
        if says_something(name, text):
            receipts.dropped(f"{path}.{name}", "this model takes text only")
    texts = [message.content] if message.content else []
    for index, part in enumerate(message.parts):
        name, kind = f"{path}.content[{index}]", part.WhichOneof("kind")
        if kind in {"reasoning", "opaque"}:
            receipts.dropped(name, "it can only be read by the provider it came from")
            continue
        if kind not in {"text", "refusal"}:
            raise unsupported(name, f"this model takes text only, no {kind}")
        account_for(part, name, receipts)
        texts.append(part.text.text or part.refusal.text)
    return "\n".join(texts)


def _finish(word: str) -> Finish:
    return Finish(reason=_REASONS.get(word, "unknown"), raw=word)


class _Result(msgspec.Struct):
    text: str = msgspec.field(default="", name="outputText")
    tokens: int | None = msgspec.field(default=None, name="tokenCount")
    reason: str = msgspec.field(default="", name="completionReason")


class _Body(msgspec.Struct):
    results: list[_Result]
    input_tokens: int | None = msgspec.field(default=None, name="inputTextTokenCount")


def read_response(body: bytes) -> Answer:
    """Read an answer. Raises FormatError naming the field that is wrong."""
    read = _decode(body, _Body)
    if not read.results:
        raise invalid("results", "the answer has no result")
    result = read.results[0]
    part = Part()
    part.text.text = result.text
    part.text.SetInParent()
    usage = None
    if read.input_tokens is not None and result.tokens is not None:
        usage = reported(input_total=read.input_tokens, output_total=result.tokens)
    return Answer(Message(role="assistant", parts=[part]), _finish(result.reason), usage, "", "")


class _Frame(msgspec.Struct):
    data: str = msgspec.field(name="bytes")


class _Chunk(msgspec.Struct):
    text: str | None = msgspec.field(default=None, name="outputText")
    reason: str | None = msgspec.field(default=None, name="completionReason")
    input_tokens: int | None = msgspec.field(default=None, name="inputTextTokenCount")
    output_tokens: int | None = msgspec.field(default=None, name="totalOutputTextTokenCount")


class StreamReader:
    """Turns the chunks of a stream into typed events."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._is_open = False
        self._input_tokens: int | None = None

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one frame; unknown events are nothing. Raises FormatError when `data` is no chunk."""
        progress = self.progress
        if event.startswith((EXCEPTION, b"error/")):
            if progress.finish is None:
                progress.error = read_exception(event, data)
            progress.closed = True
            return []
        if event != b"chunk":
            return []
        decoded = decode_base64(_decode(data, _Frame).data)
        if decoded is None:
            raise invalid("bytes", "is no base64")
        chunk = _decode(decoded, _Chunk)
        events = self._delta(chunk.text) if chunk.text else []
        if chunk.input_tokens is not None:
            self._input_tokens = chunk.input_tokens
        if chunk.reason:
            progress.finish = _finish(chunk.reason)
            if self._input_tokens is not None and chunk.output_tokens is not None:
                progress.usage = reported(input_total=self._input_tokens, output_total=chunk.output_tokens)
        return events

    def finish(self) -> list[Event]:
        """Return the end of the text."""
        return [PartStop(index=0)] if self._is_open else []

    def _delta(self, text: str) -> list[Event]:
        self.progress.output_chars += len(text)
        delta = PartDelta(index=0, text=text)
        if self._is_open:
            return [delta]
        self._is_open = True
        part = Part()
        part.text.SetInParent()
        return [PartStart(index=0, part=part), delta]


def write_embedding(text: str, model: str, dimensions: int | None) -> bytes:
    """Write the body for one vector; only later versions can be asked for a number of dimensions."""
    fields: dict[str, Any] = {"inputText": text}
    if dimensions is not None:
        if not model.partition("titan-embed-text-v")[2].startswith("2"):
            raise unsupported("dimensions", "this model has one number of dimensions")
        fields["dimensions"] = dimensions
    return write_object(fields)


class _Embedding(msgspec.Struct):
    embedding: list[float]
    tokens: int | None = msgspec.field(default=None, name="inputTextTokenCount")


def read_embedding(body: bytes) -> tuple[list[float], int | None]:
    """Return the vector and the tokens of the input, when they are told. Raises FormatError."""
    read = _decode(body, _Embedding)
    return read.embedding, believable(read.tokens)


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
