"""What a check is, what it is given, and how all of them are run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc.probe import OK, Probe, ProbedCall, Reply
from services.providers.domain.clauses import CLAUSES, BreachError

State = Literal["pass", "fail", "skip"]
# A check that has not ended by then has failed.
CHECK_TIMEOUT_S = 90.0
# One call of a model.
CALL_TIMEOUT_S = 60.0
# A call that asks no model.
QUICK_S = 5.0
# How many of the listed models are tried before none is said to work.
MODELS_TRIED = 10
QUESTION = "Reply with the single word: harbour"
# A limit that lets a model think and still bounds what a check may cost.
MAX_TOKENS = 400


class SkippedError(Exception):
    """A check cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check at one provider."""

    provider: str
    check: str
    state: State
    clauses: Sequence[str]
    """The clauses that the check tests; of a failure, the one that is broken."""
    detail: str
    seconds: float


class Subject:
    """The provider that is judged, and how it is asked."""

    def __init__(self, probe: Probe, provider: str, model: str, embedding_model: str) -> None:
        self.probe = probe
        self.provider = provider
        self.capabilities = pb.ProviderCapabilities()
        self.memory: dict[str, Any] = {}
        """What one check learned and others may use, such as a recorded stream."""
        self._model = model
        self._embedding_model = embedding_model

    def offers(self, feature: str) -> bool:
        """Tell whether the capabilities name a feature, or a wire format."""
        names = [WireFormat.Name(each) for each in self.capabilities.wire_formats if each in _FORMATS]
        return feature in self.capabilities.features or feature in names

    async def attempt(self, text: str = QUESTION, **fields: Any) -> pb.Attempt:
        """Return an attempt with one question. `fields` are those of ChatInput."""
        messages = fields.pop("messages", [Message(role="user", content=text)])
        fields.setdefault("max_tokens", MAX_TOKENS)
        chat = ChatInput(messages=messages, **{name: value for name, value in fields.items() if value})
        return pb.Attempt(
            provider=self.provider, model=await self.model(), chat=chat, attempt_id=new_id("att")
        )

    async def chat(self, attempt: pb.Attempt, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Ask and wait."""
        return await self.probe.call("chat", pb.ChatRequest(attempt=attempt), timeout_s)

    async def stream(self, attempt: pb.Attempt, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Ask and read the whole stream."""
        return await self.probe.call("stream_chat", pb.StreamChatRequest(attempt=attempt), timeout_s)

    async def ask(self, attempt: pb.Attempt, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Ask in whichever way is offered."""
        return await (self.chat if self.offers("chat") else self.stream)(attempt, timeout_s)

    def open_stream(self, attempt: pb.Attempt, timeout_s: float = CALL_TIMEOUT_S) -> ProbedCall:
        """Ask and leave the reading to the caller."""
        return self.probe.open("stream_chat", pb.StreamChatRequest(attempt=attempt), timeout_s)

    async def answered(self, attempt: pb.Attempt, clause: str) -> pb.ChatResponse:
        """Ask, expecting an answer; anything else breaks `clause`."""
        reply = await self.chat(attempt)
        if not reply.status.ok:
            raise BreachError(clause, f"Chat ended with {reply.status}")
        response: pb.ChatResponse = reply.message
        return response

    async def model(self) -> str:
        """Return the model to ask: the one that was named, else the first listed that answers."""
        if not self._model:
            self._model = await self._find("chat", self._try_chat)
        return self._model

    async def embedding_model(self) -> str:
        """Return the model to embed with, found in the same way."""
        if not self._embedding_model:
            self._embedding_model = await self._find("embed", self._try_embed)
        return self._embedding_model

    async def _find(self, what: str, answers: Callable[[str], Awaitable[str]]) -> str:
        if (known := self.memory.get(f"no {what} model")) is not None:
            raise SkippedError(str(known))
        listed = await self.probe.call(
            "list_models", pb.ListModelsRequest(provider=self.provider), QUICK_S * 6
        )
        models: list[str] = [each.model for each in listed.message.models] if listed.status.ok else []
        last = "ListModels names none"
        for model in models[:MODELS_TRIED]:
            last = await answers(model)
            if last == OK:
                return model
        option = "--embedding-model" if what == "embed" else "--model"
        problem = f"no listed model works ({last}); name one with {option}"
        self.memory[f"no {what} model"] = problem
        raise SkippedError(problem)

    async def _try_chat(self, model: str) -> str:
        chat = ChatInput(messages=[Message(role="user", content=QUESTION)], max_tokens=MAX_TOKENS)
        attempt = pb.Attempt(provider=self.provider, model=model, chat=chat)
        reply = await self.ask(attempt)
        return OK if reply.status.ok else f"{model}: {reply.status}"

    async def _try_embed(self, model: str) -> str:
        request = pb.EmbedRequest(provider=self.provider, model=model, inputs=["harbour"])
        reply = await self.probe.call("embed", request, CALL_TIMEOUT_S)
        return OK if reply.status.ok else f"{model}: {reply.status}"


_FORMATS = frozenset(WireFormat.values())
Run = Callable[[Subject], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    """One behaviour. `run` raises BreachError, or SkippedError when the behaviour cannot be provoked."""

    name: str
    clauses: Sequence[str]
    needs: Sequence[str]
    """Features and wire formats without which it is skipped; `chat|stream` is either."""
    run: Run


@dataclass(slots=True)
class Group:
    """The checks of one file, in their order."""

    name: str
    checks: list[Check] = field(default_factory=list)

    def check(self, *clauses: str, needs: Sequence[str] = ()) -> Callable[[Run], Run]:
        """Add the decorated function, which tests `clauses` and needs these features."""
        unknown = [clause for clause in clauses if clause not in CLAUSES]
        if unknown:
            raise ValueError(f"no such clause: {unknown}")

        def add(run: Run) -> Run:
            name = getattr(run, "__name__", "").replace("_", "-")
            self.checks.append(Check(f"{self.name}/{name}", clauses, tuple(needs), run))
            return run

        return add


def require(holds: bool, clause: str, message: str) -> None:
    """Raise BreachError unless something holds."""
    if not holds:
        raise BreachError(clause, message)


async def run_check(check: Check, subject: Subject) -> Result:
    """Run one check."""
    started = time.monotonic()
    state: State = "pass"
    clauses, detail = check.clauses, ""
    missing = [need for need in check.needs if not any(map(subject.offers, need.split("|")))]
    try:
        if missing:
            raise SkippedError(f"{', '.join(missing).replace('|', ' or ')} is not offered")
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check.run(subject)
    except SkippedError as skipped:
        state, detail = "skip", str(skipped)
    except BreachError as breach:
        state, clauses, detail = "fail", (breach.clause,), breach.message
    except TimeoutError:
        state, clauses, detail = "fail", check.clauses[:1], f"did not end within {CHECK_TIMEOUT_S:g} s"
    return Result(subject.provider, check.name, state, clauses, detail, time.monotonic() - started)
