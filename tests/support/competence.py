"""Providers for the evaluation: OpenAI-shaped servers whose models differ in price, speed and competence.

A simulation: a model answers a prompt of the shipped workload rightly if its skill at the task reaches the
prompt's difficulty, with a little luck that comes out the same each time. Otherwise its answer is wrong. What
this says about real models is nothing; it shows that the method tells good routing from bad.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from services.router.domain.evaluation import Prompt
from services.router.planning.evaluating import WORKLOAD, read_workload

_NEEDED = {"easy": 0.25, "medium": 0.55, "hard": 0.8}
_LUCK = 0.2


@dataclass(frozen=True)
class Simulated:
    """One model."""

    input_per_million: str
    output_per_million: str
    skills: Mapping[str, float]
    """Its strength at each task, from 0 to 1: what the registry says of it, and what is true."""


MODELS: Mapping[str, Simulated] = {
    "small": Simulated(
        "0.20",
        "0.80",
        {
            "chat": 0.8,
            "translation": 0.8,
            "summarization": 0.75,
            "coding": 0.25,
            "reasoning": 0.2,
            "agent_step": 0.35,
        },
    ),
    "medium": Simulated(
        "1.00",
        "4.00",
        {
            "chat": 0.85,
            "translation": 0.85,
            "summarization": 0.85,
            "coding": 0.7,
            "reasoning": 0.55,
            "agent_step": 0.75,
        },
    ),
    "large": Simulated(
        "5.00",
        "25.00",
        {
            "chat": 0.95,
            "translation": 0.95,
            "summarization": 0.95,
            "coding": 0.95,
            "reasoning": 0.95,
            "agent_step": 0.95,
        },
    ),
}


def config(url: str) -> str:
    """Return the part of omnihub.toml that makes these models known."""
    lines = ["[providers.sim]", 'adapter = "openai"', f'base_url = "{url}/v1"', 'api_key = "sk-sim"']
    for name, model in MODELS.items():
        skills = ", ".join(f"{task} = {skill}" for task, skill in model.skills.items())
        lines += [
            f'[models."{name}"]',
            f'route = ["sim/{name}"]',
            f"strengths = {{ {skills} }}",
            f'price = {{ input_per_million = "{model.input_per_million}",'
            f' output_per_million = "{model.output_per_million}" }}',
        ]
    return "\n".join(lines) + "\n"


def is_right(model: str, prompt: Prompt) -> bool:
    """Tell whether a model answers a prompt rightly."""
    digest = hashlib.sha256(f"{model}/{prompt.name}".encode()).digest()
    luck = (digest[0] / 255 - 0.5) * _LUCK
    return MODELS[model].skills[prompt.task] + luck >= _NEEDED[prompt.difficulty]


class Simulation:
    """The server."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """Model and prompt's name of each request."""
        self._prompts = {prompt.text: prompt for prompt in read_workload(WORKLOAD)}

    async def handle(self, request: web.Request) -> web.Response:
        document: dict[str, Any] = await request.json()
        model, text = document["model"], document["messages"][-1]["content"]
        prompt = self._prompts[text]
        self.asked.append((model, prompt.name))
        words = prompt.sample if is_right(model, prompt) else "I am not sure."
        usage = {"prompt_tokens": len(text) // 4 + 8, "completion_tokens": len(words) // 4 + 20}
        usage["total_tokens"] = sum(usage.values())
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": words},
            "finish_reason": "stop",
            "logprobs": None,
        }
        body = {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
        return web.Response(body=json.dumps({**body, "usage": usage}), content_type="application/json")


class RunningSimulation:
    """Serves a simulation on a free port, as an asynchronous context."""

    def __init__(self) -> None:
        self.simulation = Simulation()
        self.url = ""

    async def __aenter__(self) -> RunningSimulation:
        application = web.Application()
        application.router.add_post("/{path:.*}", self.simulation.handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
