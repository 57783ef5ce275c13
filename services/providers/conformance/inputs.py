"""Input that is not plain English of moderate length."""

from __future__ import annotations

from services.providers.conformance.calls import said_in
from services.providers.conformance.failures import check_details
from services.providers.conformance.kit import CALL_TIMEOUT_S, Group, Subject, require
from services.providers.conformance.streams import judge
from services.providers.domain.failure import ATTEMPT_REASONS

GROUP = Group("inputs")
SCRIPTS = ("Zażółć gęślą jaźń", "你好世界", "שלום עולם", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 🏳️‍🌈 𝄞")
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
