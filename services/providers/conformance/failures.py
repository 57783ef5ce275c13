"""Errors: their reason, their details, and what must not be in them."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message as ProtoMessage
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc.errors import DOMAIN, TABLE
from services.common.rpc.probe import Reply, WireStatus, code_name
from services.providers.conformance.kit import CALL_TIMEOUT_S, QUICK_S, Group, SkippedError, Subject, require

GROUP = Group("failures")
UNKNOWN = "no-such-thing-7f3a91"
CANARY = "canary-5b1e77c0"
PHASES = ("before_first_byte", "mid_stream")


def check_details(status: WireStatus) -> None:
    """Judge the details of a status that is not OK, whatever it says."""
    require(not status.complaint, "ERROR-1", status.complaint)
    require(status.detailed, "ERROR-1", f"{status} carries no ErrorInfo")
    require(
        status.domain == DOMAIN, "ERROR-1", f"the domain of {status} is {status.domain!r}, not {DOMAIN!r}"
    )
    require(status.reason in TABLE, "ERROR-1", f"{status.reason!r} is no reason of the table")
    code = code_name(TABLE[status.reason].grpc)
    require(status.code == code, "ERROR-1", f"{status.reason} came with {status.code}; its code is {code}")


def expect(status: WireStatus, reason: str, clause: str, what: str) -> None:
    """Judge a status that must be an error of this reason."""
    require(not status.ok, clause, f"{what} was accepted")
    check_details(status)
    require(status.reason == reason, clause, f"{what} is {status.reason}, not {reason}")


def check_attempt_metadata(status: WireStatus, attempt: pb.Attempt) -> None:
    """Judge what the error of an attempt says about it."""
    found = status.metadata
    for name, wanted in (("provider", attempt.provider), ("model", attempt.model)):
        message = f"metadata `{name}` of {status.reason} is {found.get(name)!r}, not {wanted!r}"
        require(found.get(name) == wanted, "ERROR-2", message)
    for name, words in (("phase", PHASES), ("retryable", ("true", "false"))):
        message = (
            f"metadata `{name}` of {status.reason} is {found.get(name)!r}, not one of {', '.join(words)}"
        )
        require(found.get(name) in words, "ERROR-2", message)


def _attempt(subject: Subject, model: str) -> pb.Attempt:
    chat = ChatInput(messages=[Message(role="user", content=CANARY)], max_tokens=16)
    attempt = pb.Attempt(provider=subject.provider, model=model, chat=chat)
    attempt.headers["anthropic-beta"] = CANARY
    return attempt


async def _to_unknown_model(subject: Subject) -> list[tuple[pb.Attempt, Reply]]:
    """Ask an unknown model in all ways that are offered. Raises SkippedError when any name is taken."""
    if "unknown model" not in subject.memory:
        attempt = _attempt(subject, UNKNOWN)
        replies = [(attempt, await subject.chat(attempt))] if subject.offers("chat") else []
        if subject.offers("stream"):
            replies.append((attempt, await subject.stream(attempt)))
        subject.memory["unknown model"] = replies
    replies = subject.memory["unknown model"]
    if all(reply.status.ok for _, reply in replies):
        raise SkippedError("it takes any name of a model")
    return list(replies)


@GROUP.check("ERROR-4", "ERROR-1", "ERROR-2", needs=["chat|stream"])
async def unknown_model(subject: Subject) -> None:
    """A model that does not exist."""
    for attempt, reply in await _to_unknown_model(subject):
        expect(reply.status, "MODEL_NOT_FOUND", "ERROR-4", f"the model {UNKNOWN!r}")
        check_attempt_metadata(reply.status, attempt)


def _to_unknown_provider(subject: Subject) -> Sequence[tuple[str, ProtoMessage]]:
    attempt = _attempt(subject, "m")
    attempt.provider = UNKNOWN
    requests: list[tuple[str, ProtoMessage]] = [
        ("list_models", pb.ListModelsRequest(provider=UNKNOWN)),
        ("check_health", pb.CheckHealthRequest(provider=UNKNOWN)),
    ]
    if subject.offers("chat"):
        requests.append(("chat", pb.ChatRequest(attempt=attempt)))
    if subject.offers("stream"):
        requests.append(("stream_chat", pb.StreamChatRequest(attempt=attempt)))
    if subject.offers("embed"):
        requests.append(("embed", pb.EmbedRequest(provider=UNKNOWN, model="m", inputs=["x"])))
    return requests


@GROUP.check("ERROR-3", "ERROR-1")
async def unknown_provider(subject: Subject) -> None:
    """A provider that does not exist."""
    for name, request in _to_unknown_provider(subject):
        reply = await subject.probe.call(name, request, QUICK_S)
        expect(reply.status, "NOT_FOUND", "ERROR-3", f"{name} of the provider {UNKNOWN!r}")


@GROUP.check("ERROR-5", "ERROR-1")
async def broken_constraints(subject: Subject) -> None:
    """Requests that the contract does not allow."""
    requests: list[tuple[str, str, ProtoMessage]] = [
        ("a model list of no provider", "list_models", pb.ListModelsRequest()),
        ("a health check of no provider", "check_health", pb.CheckHealthRequest()),
    ]
    if subject.offers("chat"):
        nameless = pb.ChatRequest(attempt=_attempt(subject, ""))
        requests += [
            ("Chat without an attempt", "chat", pb.ChatRequest()),
            ("Chat without a model", "chat", nameless),
        ]
    if subject.offers("stream"):
        requests.append(("StreamChat without an attempt", "stream_chat", pb.StreamChatRequest()))
    for what, name, request in requests:
        reply = await subject.probe.call(name, request, QUICK_S)
        expect(reply.status, "INVALID_ARGUMENT", "ERROR-5", what)


@GROUP.check("ERROR-6")
async def keep_secrets(subject: Subject) -> None:
    """An error repeats nothing confidential."""
    metadata = [("authorization", f"Bearer {CANARY}")]
    statuses = []
    for name, request in _to_unknown_provider(subject):
        reply = await subject.probe.call(name, request, CALL_TIMEOUT_S, metadata)
        statuses.append(reply.status)
    statuses += [reply.status for _, reply in subject.memory.get("unknown model", ())]
    for status in statuses:
        said = [status.message, *status.metadata.values(), *(each.description for each in status.violations)]
        echoed = any(CANARY in text for text in said)
        require(not echoed, "ERROR-6", f"{status.code} repeats the prompt or a header of the caller")
