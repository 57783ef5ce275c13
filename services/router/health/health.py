"""Who is worth asking: a circuit breaker for each target and one for each provider's credential.

In the memory of this process. What opens a circuit here is told to `on_opened`, so that others are careful,
and `caution` takes in what another process has learned: from then on one request at a time probes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from services.common.rpc import RpcError
from services.common.telemetry import meter
from services.router.domain.breaker import Breaker, Limits
from services.router.domain.catalogue import Target
from services.router.health.measurements import Measurements
from services.router.settings import BreakerSettings

# The provider could not answer, whoever asked. Other failures show that it is alive.
_DOWN = frozenset(
    {
        "INTERNAL",
        "MODEL_NOT_FOUND",
        "PROVIDER_FAILED",
        "PROVIDER_OVERLOADED",
        "PROVIDER_PROTOCOL",
        "PROVIDER_RATE_LIMITED",
        "PROVIDER_TIMEOUT",
        "STREAM_TRUNCATED",
        "UNAVAILABLE",
    }
)
_ALIVE = frozenset(
    {"CONTENT_FILTERED", "CONTEXT_LENGTH_EXCEEDED", "PARAMETER_UNSUPPORTED", "PROVIDER_REJECTED"}
)
# Callers can name any model of a provider; names must not fill the memory.
TARGETS = 10_000

ELSEWHERE = "another replica"
"""Why a circuit is half-open that has not failed here."""

_opened = meter.create_counter("omnihub.circuit.opened", unit="{circuit}")
_logger = logging.getLogger(__name__)


class Health:
    """What the outcomes of attempts say about targets and credentials."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = Limits(settings.failures, settings.window_s, settings.open_s)
        self._credential_pause_s = settings.credential_pause_s
        self._clock = clock
        self._targets: dict[Target, Breaker] = {}
        self._credentials: dict[str, Breaker] = {}
        self._reasons: dict[str, str] = {}
        self.measurements = Measurements()
        self.on_opened: Callable[[str, str], None] | None = None
        """Is told the name (`provider/model`, or `provider` alone for its credential) and the reason."""

    def objection(self, target: Target) -> str:
        """Return why `target` should not be asked now; empty when it may be, perhaps as a probe.

        Who gets an empty answer asks, and tells `succeeded`, `failed` or `released`.
        """
        known = self._known(target)
        if not known:
            return ""
        objection = self.pause(target)
        if not objection:
            for breaker in known:
                breaker.admits(self._clock())
        return objection

    def pause(self, target: Target) -> str:
        """Return the same without the promise to ask."""
        now = self._clock()
        credential, breaker = self._credentials.get(target.provider), self._targets.get(target)
        if credential is not None and (pause_s := credential.pause_s(now)) > 0:
            return f"{target.provider} refused the credential or has no money; next try in {pause_s:.0f} s"
        if breaker is not None and (pause_s := breaker.pause_s(now)) > 0:
            return f"circuit open: it failed again and again; next try in {pause_s:.0f} s"
        return ""

    def pause_s(self, target: Target) -> float:
        """Return for how many seconds `target` should not be asked; 0 when it may be."""
        now = self._clock()
        known = (self._credentials.get(target.provider), self._targets.get(target))
        return max(0.0, *(breaker.pause_s(now) for breaker in known if breaker is not None), 0.0)

    def succeeded(self, target: Target, began: float) -> None:
        """Take in an answer, or its first token, of an attempt that `began` then."""
        self.measurements.succeeded(target)
        self._proved(target, began)

    def _proved(self, target: Target, began: float) -> None:
        for breaker in self._known(target):
            breaker.succeeded(self._clock(), began)

    def failed(self, target: Target, error: RpcError, began: float, *, begun: bool = False) -> None:
        """Take in the failure of an attempt that `began` then; its answer may have `begun`."""
        reason, now = error.reason, self._clock()
        if reason == "PROVIDER_BILLING" or (
            reason == "PROVIDER_CREDENTIAL_REFUSED" and error.metadata.get("http_status") != "403"
        ):
            credential = self._credentials.setdefault(target.provider, Breaker(self._limits))
            if credential.trip(now, self._credential_pause_s):
                self._note(target, reason, target.provider)
        elif reason == "PROVIDER_CREDENTIAL_REFUSED":
            # A credential that may not use one model may use others.
            if self._breaker(target).trip(now, self._credential_pause_s):
                self._note(target, reason, target.name)
        elif reason in _DOWN:
            if self._breaker(target).failed(now, began):
                self._note(target, reason, target.name)
        else:
            if reason in _ALIVE:
                self._proved(target, began)
            else:
                self._release(target)
            self.measurements.refused(target)
            return
        self.measurements.failed(target, begun)

    def left(self, target: Target) -> None:
        """Take in that an attempt ended without telling anything: it was stopped from here."""
        self.measurements.cancelled(target)
        self._release(target)

    def released(self, target: Target) -> None:
        """Take in that who wanted to ask did not."""
        self._release(target)

    def _release(self, target: Target) -> None:
        for breaker in self._known(target):
            breaker.released()

    def caution(self, name: str) -> None:
        """Take in that another process has opened the circuit of a target, or of a provider's credential."""
        if "/" in name:
            breaker = self._breaker(Target.parse(name))
        else:
            breaker = self._credentials.setdefault(name, Breaker(self._limits))
        if breaker.closed:
            self._reasons[name] = ELSEWHERE
            _logger.info("circuit_half_open name=%s opened by another replica", name)
        breaker.caution(self._clock())

    def state(self, target: Target) -> tuple[str, int, str]:
        """Return the state of a target's circuit, the milliseconds until it is probed, and why it opened."""
        now = self._clock()
        broken = [breaker for breaker in self._known(target) if not breaker.closed]
        if not broken:
            return "closed", 0, ""
        worst = max(broken, key=lambda breaker: breaker.pause_s(now))
        name = target.provider if worst is self._credentials.get(target.provider) else target.name
        return worst.state(now), round(worst.pause_s(now) * 1000), self._reasons.get(name, "")

    def troubled(self) -> list[Target]:
        """Return the targets whose circuit is not closed."""
        return [target for target, breaker in self._targets.items() if not breaker.closed]

    def _known(self, target: Target) -> Sequence[Breaker]:
        """Return the breakers of a target; none as long as it has never failed."""
        breaker, credential = self._targets.get(target), self._credentials.get(target.provider)
        if breaker is None and credential is None:
            return ()
        return [known for known in (breaker, credential) if known is not None]

    def _breaker(self, target: Target) -> Breaker:
        breaker = self._targets.get(target)
        if breaker is None:
            if len(self._targets) >= TARGETS:
                oldest = next(iter(self._targets))
                del self._targets[oldest]
                self._reasons.pop(oldest.name, None)
            breaker = self._targets[target] = Breaker(self._limits)
        return breaker

    def _note(self, target: Target, reason: str, name: str) -> None:
        self._reasons[name] = reason
        if self.on_opened is not None:
            self.on_opened(name, reason)
        _logger.warning("circuit_opened target=%s reason=%s", target.name, reason)
        _opened.add(1, {"gen_ai.provider.name": target.provider, "omnihub.reason": reason})
