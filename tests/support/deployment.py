"""The suite configured as the end-to-end tests need it: providers that work, one that is dead, prices."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from tests.support.suite import APART, SPLIT, Suite
from tests.support.upstream import INPUT_TOKENS, OUTPUT_TOKENS, Upstream

WALL_KEY = "sk-wall-7d1f0a5c9e"
CLAUDE_KEY = "sk-ant-3b8e2f6a4c"
SHAPES: Mapping[str, Sequence[str]] = {"one": ("all",), "many": SPLIT}
ROUTER_APART: Mapping[str, Sequence[str]] = {"router apart": (APART, "router")}
# By hand: credits for a million tokens, as in CONFIG below.
WALL_COST = (INPUT_TOKENS * Decimal("1.00") + OUTPUT_TOKENS * Decimal("2.00")) / 1_000_000
CLAUDE_COST = (INPUT_TOKENS * Decimal("3.00") + OUTPUT_TOKENS * Decimal("15.00")) / 1_000_000

CONFIG = """
[auth]
registration = "{registration}"

[providers.wall]
adapter = "openai"
base_url = "{upstream}/v1"
api_key = "env:WALL_KEY"

[providers.claude]
adapter = "anthropic"
base_url = "{upstream}"
api_key = "{claude_key}"

[providers.dead]
adapter = "openai"
base_url = "http://127.0.0.1:{dead_port}/v1"

[billing.prices]
"wall/*" = {{ input_per_million = "1.00", output_per_million = "2.00" }}
"claude/*" = {{ input_per_million = "3.00", output_per_million = "15.00" }}
"dead/*" = {{ input_per_million = "9.00", output_per_million = "9.00" }}

[models."support-chat"]
route = ["wall/gpt-x", "claude/claude-y"]
capabilities = ["tools"]

[models."claude-chat"]
route = ["claude/claude-y"]
capabilities = ["tools"]

[models."failover"]
route = ["dead/gone", "wall/fail-500", "wall/gpt-x"]
retries = 0
"""


@contextmanager
def refusing_port() -> Iterator[int]:
    """Hold a port on which every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def running_suite(
    folder: Path,
    upstream: Upstream,
    shape: str = "one",
    environment: Mapping[str, str] | None = None,
    registration: str = "open",
    start: bool = True,
    fresh: bool = False,
) -> Iterator[Suite]:
    """Run the suite in one process, in many or with its router apart, with CONFIG; stopped at the end.

    Without `start`, only its files are made. `fresh`: as in Suite.
    """
    with refusing_port() as dead_port:
        config = CONFIG.format(
            upstream=upstream.url, claude_key=CLAUDE_KEY, dead_port=dead_port, registration=registration
        )
        variables = {"WALL_KEY": WALL_KEY, **(environment or {})}
        suite = Suite(folder, config, variables, {**SHAPES, **ROUTER_APART}[shape], fresh=fresh)
        try:
            if start:
                suite.start()
            yield suite
        finally:
            suite.stop()
