"""What travels with every call: who asks, which request it belongs to, and until when."""

import time
from dataclasses import dataclass, field, replace

from services.common.ids import new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a request acts for. `token` is the signed form that travels between processes."""

    organisation_id: str = ""
    workspace_id: str = ""
    key_id: str = ""
    user_id: str = ""
    role: str = ""
    scopes: frozenset[str] = frozenset()
    allowed_models: tuple[str, ...] = ()
    token: str = field(default="", repr=False)

    def holds(self, scope: str) -> bool:
        """Tell whether this identity may use what `scope` protects. `platform` is never implied."""
        return not scope or scope in self.scopes or (scope != "platform" and "admin" in self.scopes)


ANONYMOUS = Identity()


@dataclass(frozen=True, slots=True)
class Call:
    """The second argument of every rpc, explicit and frozen: nothing about a caller is ambient."""

    request_id: str
    identity: Identity = ANONYMOUS
    deadline: float | None = None
    """On the clock of `time.monotonic()`, in seconds."""
    traceparent: str = ""
    idempotency_key: str = ""

    @classmethod
    def internal(cls, timeout_s: float | None = None) -> "Call":
        """Return a call that a service makes on its own behalf."""
        return cls(new_id("req")).within(timeout_s)

    def within(self, timeout_s: float | None) -> "Call":
        """Return this call with its deadline at most `timeout_s` seconds away."""
        if timeout_s is None:
            return self
        deadline = time.monotonic() + timeout_s
        if self.deadline is not None and self.deadline <= deadline:
            return self
        return replace(self, deadline=deadline)

    def remaining_s(self) -> float | None:
        """Return the seconds left, never negative, or None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
