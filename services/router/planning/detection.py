"""Finds out what kind of work a request is: said, seen, classified here, or asked of a cheap model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections import OrderedDict
from functools import cache
from pathlib import Path

from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.formats.turns import Turns
from services.router.domain.catalogue import Target
from services.router.domain.routing import TASKS
from services.router.domain.tasks import HEAD, TAIL, Classifier, Detection
from services.router.execution.attempts import timeouts_of
from services.router.settings import TimeoutSettings

MODEL_FILE = Path(__file__).parent / "task_model.json"
# Answers of the cheap model that are kept.
ANSWERS = 10_000
_TOKENS = 8
_QUESTION = (
    "Classify the request between the lines. Answer with one of these words and nothing else: "
    f"{', '.join(TASKS)}.\n---\n"
)
_WORD = re.compile("|".join(TASKS))

_logger = logging.getLogger(__name__)


@cache
def classifier() -> Classifier:
    """Return the model that is shipped."""
    return Classifier.from_document(json.loads(MODEL_FILE.read_text()))


class Detector:
    """Tells the task of requests whose model is left to us."""

    def __init__(self, providers: ProviderService, task_model: str, limit_s: float) -> None:
        self._providers = providers
        self._target = Target.parse(task_model) if task_model else None
        self._limit_s = limit_s
        self._classifier = classifier()
        self._answers: OrderedDict[bytes, str] = OrderedDict()

    def said(self, chat: ChatInput, task: str = "") -> Detection | None:
        """Return the task that the caller named, or that the request's kind says; None when neither does."""
        if chat.task:
            return Detection(chat.task, 1.0, "caller", {})
        if task or chat.agent_id:
            return Detection(task or "agent_step", 1.0, "request", {})
        return None

    async def detect(self, turns: Turns) -> Detection:
        """Return the task of a conversation. A cheap model that does not answer in time is done without."""
        if turns.returns_results:
            return Detection("agent_step", 1.0, "request", {})
        if self._target is not None and turns.latest.strip():
            answer = await self._ask(self._target, turns.latest)
            if answer:
                return Detection(answer, 1.0, "model", {})
        return self.local(turns)

    def local(self, turns: Turns) -> Detection:
        """Return what the classifier says."""
        if turns.returns_results:
            return Detection("agent_step", 1.0, "request", {})
        return self._classifier.detect(turns.instructions, turns.latest)

    async def _ask(self, target: Target, text: str) -> str:
        """Return the cheap model's answer, or what it has answered before; empty when there is none."""
        shown = text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n...\n{text[-TAIL:]}"
        key = hashlib.blake2b(shown.encode(errors="replace"), digest_size=16).digest()
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        request = provider.ChatRequest()
        attempt = request.attempt
        attempt.provider, attempt.model = target.provider, target.model
        attempt.output_cap = _TOKENS
        attempt.timeouts.CopyFrom(timeouts_of(TimeoutSettings(total_s=self._limit_s)))
        message = Message(role="user", content=f"{_QUESTION}{shown}\n---")
        attempt.chat.CopyFrom(ChatInput(messages=[message], max_tokens=_TOKENS, temperature=0))
        try:
            async with asyncio.timeout(self._limit_s):
                answer = await self._providers.chat(request, Call.internal(self._limit_s))
        except (RpcError, TimeoutError) as error:
            # Not its text, in which a provider may quote the prompt.
            reason = error.reason if isinstance(error, RpcError) else "PROVIDER_TIMEOUT"
            _logger.warning("task_model_failed target=%s %s", target.name, reason)
            return ""
        said = answer.message.content or "".join(part.text.text for part in answer.message.parts)
        found = _WORD.search(said.lower())
        if found is None:
            return ""
        self._answers[key] = found[0]
        if len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return found[0]
