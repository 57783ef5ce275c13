"""No parameter without a word: what a format's writer did not mention is told here, or refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Raw
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import openai_responses
from services.formats.documents import is_null, raw_of, read_object
from services.formats.receipts import MOST, Receipts
from services.providers.domain.failure import UnsupportedError

# What the format's writers call a parameter that the caller calls something else.
_SAME = {
    "max_completion_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "max_tokens": ("max_completion_tokens",),
    "metadata": ("user",),
    "output_config": ("response_format", "reasoning_effort"),
    "reasoning": ("reasoning_effort",),
    "response_schema_json": ("response_format",),
    "stop_sequences": ("stop",),
    "text": ("response_format", "verbosity"),
    "thinking": ("reasoning_effort",),
}
# The conversation itself: it is always written, and what is lost of it has entries of its own.
_CONVERSATION = frozenset({"messages", "system", "input", "inputs", "instructions"})
# Read by the platform; no provider gets them.
_OURS = frozenset({"agent_id", "extension_json", "latency_pref", "max_cost", "mode", "priority"})
# These are about the way an answer comes, which a caller gets in any case.
_DELIVERY = frozenset({"encoding_format", "stream", "stream_options"})
# Values that mean the same as none, in every format that has the parameter.
_DEFAULTS = {"logprobs": b"false", "n": b"1"}


def account(attempt: pb.Attempt, receipt: Sequence[ParameterReceipt]) -> list[ParameterReceipt]:
    """Return the receipt with an entry for every parameter of a translated request."""
    if attempt.raw_body and attempt.wire_format == WireFormat.WIRE_FORMAT_OPENAI_RESPONSES:
        receipt = [*receipt, *openai_responses.default_receipts(attempt.raw_body)]
    return _complete(_parameters(attempt), receipt)


def _complete(
    parameters: Sequence[tuple[str, bool]], receipt: Sequence[ParameterReceipt]
) -> list[ParameterReceipt]:
    """Return the receipt with an entry for each of the parameters, given with whether it says nothing."""
    silent = {name for name, empty in parameters if empty}
    receipt = [
        _unsaid(entry.name) if entry.outcome == "dropped" and entry.name in silent else entry
        for entry in receipt
    ]
    told = {entry.name: entry for entry in reversed(receipt)}
    parts = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    added = []
    for name, empty in parameters:
        if name in told or (name in parts and name not in _CONVERSATION):
            continue
        same = next((told[other] for other in _SAME.get(name, ()) if other in told), None)
        if same is not None:
            detail = f"as {same.name}; {same.detail}" if same.detail else f"as {same.name}"
            outcome = "translated" if same.outcome == "forwarded" else same.outcome
            added.append(ParameterReceipt(name=name, outcome=outcome, detail=detail))
        elif name in _CONVERSATION:
            added.append(
                ParameterReceipt(name=name, outcome="translated", detail="in this provider's format")
            )
        elif name in _DELIVERY:
            added.append(ParameterReceipt(name=name, outcome="translated", detail="answered as it says"))
        elif empty:
            added.append(_unsaid(name))
        else:
            detail = "this provider has no such parameter"
            added.append(ParameterReceipt(name=name, outcome="dropped", detail=detail))
    return [*receipt, *added]


def _unsaid(name: str) -> ParameterReceipt:
    return ParameterReceipt(name=name, outcome="translated", detail="the same as leaving it out")


def receipt_of(attempt: pb.Attempt, taken: Collection[str]) -> list[ParameterReceipt]:
    """Return the receipt of a provider that takes only some parameters, and those as they are."""
    names = [name for name, _ in _parameters(attempt)]
    return account(
        attempt, [ParameterReceipt(name=name, outcome="forwarded") for name in names if name in taken]
    )


def embedding_receipt(
    provider: str, request: pb.EmbedRequest, taken: Mapping[str, str]
) -> list[ParameterReceipt]:
    """Return the receipt of an embedding by a provider that calls what it takes as `taken` says.

    Raises UnsupportedError when the caller is strict and something would be dropped.
    """
    parameters = _embedding_parameters(request)
    receipts = Receipts()
    receipts.translated("model", request.model)
    for name, empty in parameters:
        if name not in taken or empty:
            continue
        if taken[name] == name:
            receipts.forwarded(name)
        else:
            receipts.translated(name, taken[name])
    receipt = _complete(parameters, receipts.all())
    if request.strict:
        refuse_drops(provider, receipt)
    return receipt[:MOST]


def _embedding_parameters(request: pb.EmbedRequest) -> list[tuple[str, bool]]:
    if request.raw_body:
        return _fields(request.raw_body)
    return [("inputs", False), *([("dimensions", False)] if request.HasField("dimensions") else [])]


def refuse_drops(provider: str, receipt: Iterable[ParameterReceipt]) -> None:
    """Raise UnsupportedError when anything the caller sent would be left out."""
    for entry in receipt:
        if entry.outcome == "dropped":
            raise UnsupportedError(
                provider, f"{provider} cannot take {entry.name}: {entry.detail}", entry.name
            )


def _parameters(attempt: pb.Attempt) -> list[tuple[str, bool]]:
    """Return the names of what the caller sent, each with whether it says nothing."""
    if attempt.raw_body:
        return _fields(attempt.raw_body)
    chat: ChatInput = attempt.chat
    named = [(field.name, False) for field, _ in chat.ListFields() if field.name not in _OURS]
    extension = [
        (name, _is_default(name, raw_of(text)))
        for name, text in chat.extension_json.items()
        if name[:1] != "@"
    ]
    return [*named, *extension]


def _fields(raw_body: bytes) -> list[tuple[str, bool]]:
    return [(name, _is_default(name, raw)) for name, raw in read_object(raw_body).items()]


def _is_default(name: str, raw: Raw) -> bool:
    return is_null(raw) or (name in _DEFAULTS and bytes(raw) == _DEFAULTS[name])
