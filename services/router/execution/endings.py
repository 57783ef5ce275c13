"""How requests end that do not end well: what is recorded of them, and what is paid."""

from __future__ import annotations

from services.common.rpc import RpcError
from services.common.rpc.errors import to_rpc_error
from services.router.accounting.journal import JournalError
from services.router.admission import Admission
from services.router.domain.transcript import Transcript
from services.router.request import Request

# How a request ended, by the reason of its failure; any other reason is the provider's.
_STATES = {
    "CANCELLED": "cancelled",
    "INTERNAL": "failed",
    "OUT_OF_BUDGET": "out_of_budget",
    "STREAM_TRUNCATED": "truncated",
}


class Endings:
    """Ends requests; one that has been recorded stays as it is."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def fail(self, request: Request, error: BaseException) -> None:
        """End a request that produced nothing the caller has seen: it costs nothing."""
        if request.concluded:
            return
        failure = to_rpc_error(error)
        if isinstance(error, RpcError):
            error.metadata.setdefault("decision_id", request.decision_id)
        request.state = _STATES.get(failure.reason, "upstream_error")
        request.reason = failure.reason
        request.end_attempt("cancelled" if failure.reason == "CANCELLED" else "failed", failure)
        self._admission.abandon(request)

    async def break_off(self, request: Request, error: Exception, transcript: Transcript) -> None:
        """End a stream that broke: what was produced is paid."""
        if request.concluded:
            return
        failure = to_rpc_error(error)
        request.state = _STATES.get(failure.reason, "upstream_error")
        request.reason = failure.reason
        request.end_attempt("cancelled" if failure.reason == "OUT_OF_BUDGET" else "failed", failure)
        request.estimate_usage(transcript.attempt_bytes)
        try:
            await self._admission.conclude(request)
        except JournalError:
            # The stream's own failure is what its caller is told; the journal has logged this one.
            return

    def leave(self, request: Request, transcript: Transcript) -> None:
        """End a request whose caller has gone: what was produced is paid."""
        if request.concluded:
            return
        request.state = "cancelled"
        request.reason = "CANCELLED"
        request.end_attempt("cancelled")
        if request.first_token_at is None:
            self._admission.abandon(request)
        else:
            request.estimate_usage(transcript.attempt_bytes)
            self._admission.conclude_soon(request)
