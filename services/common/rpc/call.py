"""What travels with every call: who asks, which request it belongs to, and until when."""

import time
from dataclasses import dataclass, field

from services.common.ids import new_id
from services.common.rpc.errors import RpcError, Violation

# These travel as headers between processes.
HEADER_LIMIT = 256
# Frozen is for users of a call, not for its making.
_copy_field = object.__setattr__


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a request acts for. `token` is the signed form that travels between processes."""

    organisation_id: str = ""
    workspace_id: str = ""
    project_id: str = ""
    key_id: str = ""
    user_id: str = ""
    role: str = ""
    scopes: frozenset[str] = frozenset()
    allowed_models: tuple[str, ...] = ()
    rescue: str = ""
    token: str = field(default="", repr=False)

    def holds(self, scope: str) -> bool:
        """Tell whether this identity may use what `scope` protects. `platform` is never implied."""
        return not scope or scope in self.scopes or (scope != "platform" and "admin" in self.scopes)


ANONYMOUS = Identity()


def _fits(value: str) -> bool:
    return len(value) <= HEADER_LIMIT and value.isascii() and value.isprintable()


@dataclass(frozen=True, slots=True)
class Call:
    """The second argument of every rpc, explicit and frozen: nothing about a caller is ambient.

    Raises RpcError INVALID_ARGUMENT for texts that could not travel in a header.
    """

    request_id: str
    identity: Identity = ANONYMOUS
    deadline: float | None = None
    """On the clock of `time.monotonic()`, in seconds."""
    traceparent: str = ""
    idempotency_key: str = ""
    client_address: str = ""
    """Where the caller is, as the edge sees it; only for rpcs that take no credential."""

    def __post_init__(self) -> None:
        for value in (self.request_id, self.traceparent, self.idempotency_key, self.client_address):
            if value and not _fits(value):
                raise self._unfit()

    def _unfit(self) -> RpcError:
        rule = f"must be at most {HEADER_LIMIT} printable ASCII characters"
        names = ("request_id", "traceparent", "idempotency_key", "client_address")
        broken = [name for name in names if not _fits(getattr(self, name))]
        return RpcError(
            "INVALID_ARGUMENT",
            "; ".join(f"{name} {rule}" for name in broken),
            violations=[Violation(name, rule) for name in broken],
        )

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
        # What is taken over has been checked; `replace` would check it again, on every hop.
        sooner = object.__new__(Call)
        _copy_field(sooner, "request_id", self.request_id)
        _copy_field(sooner, "identity", self.identity)
        _copy_field(sooner, "deadline", deadline)
        _copy_field(sooner, "traceparent", self.traceparent)
        _copy_field(sooner, "idempotency_key", self.idempotency_key)
        _copy_field(sooner, "client_address", self.client_address)
        return sooner

    def remaining_s(self) -> float | None:
        """Return the seconds left, never negative, or None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
