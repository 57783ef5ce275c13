"""How each vendor says no: by status, and in mid-stream. Every message repeats our key, as some really do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support import event_stream, gemini_wire
from tests.support.fault_server import Step, answer, sse
from tests.support.providers import KEY

Json = dict[str, Any]
REFUSED, BILLING, MISSING = "PROVIDER_CREDENTIAL_REFUSED", "PROVIDER_BILLING", "MODEL_NOT_FOUND"
LIMITED, BUSY, FAILED = "PROVIDER_RATE_LIMITED", "PROVIDER_OVERLOADED", "PROVIDER_FAILED"
TOO_LONG, FILTERED, REJECTED = "CONTEXT_LENGTH_EXCEEDED", "CONTENT_FILTERED", "PROVIDER_REJECTED"


@dataclass(frozen=True)
class Refusal:
    """An answer with an error status, and the reason it stands for."""

    reason: str
    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    def script(self, **headers: str) -> Sequence[Step]:
        """Return it as the fault server's answer."""
        return answer(self.body, self.status, {**self.headers, **headers})


@dataclass(frozen=True)
class Refusals:
    """What a vendor refuses with, by subject."""

    auth: Sequence[Refusal]
    missing: Sequence[Refusal]
    limited: Refusal
    billing: Sequence[Refusal]
    passing: Sequence[Refusal]
    """Of the kind that another attempt mends."""
    too_long: Sequence[Refusal]
    filtered: Sequence[Refusal] = ()
    rejected: Sequence[Refusal] = ()
    """The request itself is at fault."""
    broken: Sequence[tuple[str, bytes]] = ()
    """Frames that come in place of the rest of a stream, and their reasons."""
    late: Sequence[tuple[str, Any]] = ()
    """Bodies that come with status 200 where no stream was asked for."""


def _openai(message: str, code: object = None, kind: str = "invalid_request_error", **more: Any) -> Json:
    return {"error": {"message": f"{message} ({KEY})", "type": kind, "param": None, "code": code, **more}}


def _numbered(code: int, message: str, **metadata: Any) -> Json:
    return {"error": {"code": code, "message": f"{message} ({KEY})", "metadata": metadata}, "user_id": "u"}


def _flat(message: str, kind: str, code: int) -> Json:
    return {"object": "error", "message": f"{message} ({KEY})", "type": kind, "param": None, "code": code}


def _anthropic(kind: str, message: str, **more: Any) -> Json:
    error = {"type": kind, "message": f"{message} ({KEY})", **more}
    return {"type": "error", "error": error, "request_id": "req_1"}


def _gemini(code: int, status: str, message: str, *details: Json) -> Json:
    return gemini_wire.error(code, status, f"{message} ({KEY})", *details)


PAGE = b"<html><body>Bad gateway, key " + KEY.encode() + b"</body></html>"


def _passing(body: Any, *more: Refusal) -> list[Refusal]:
    failed = [Refusal(FAILED, 500, body), Refusal(FAILED, 502, PAGE)]
    return [*failed, Refusal(BUSY, 503, body), Refusal(BUSY, 529, body), Refusal(BUSY, 498, body), *more]


_INVALID_KEY = Refusal(REFUSED, 401, _openai("Incorrect API key provided", "invalid_api_key"))
_OPENAI_CODED = {
    LIMITED: _openai("slow", "rate_limit_exceeded", "requests"),
    FAILED: _openai("The server had an error", None, "server_error"),
    BILLING: _openai("You exceeded your current quota", "insufficient_quota"),
}
OPENAI = Refusals(
    rejected=[
        Refusal(REJECTED, 400, _openai("bad temperature")),
        Refusal(REJECTED, 422, {"detail": f"wrong {KEY}"}),
    ],
    auth=[_INVALID_KEY, Refusal(REFUSED, 403, _openai("Country not supported", "unsupported_country"))],
    missing=[
        Refusal(MISSING, 404, _openai("The model `m` does not exist", "model_not_found")),
        Refusal(MISSING, 400, _openai("The requested model 'm' does not exist.", "model_not_found")),
    ],
    limited=Refusal(LIMITED, 429, _OPENAI_CODED[LIMITED]),
    billing=[
        Refusal(BILLING, 429, _OPENAI_CODED[BILLING]),
        Refusal(BILLING, 402, _openai("pay")),
        Refusal(BILLING, 429, _openai("none left", "credit_balance_exhausted")),
    ],
    passing=_passing(_openai("oops", None, "server_error")),
    too_long=[
        Refusal(TOO_LONG, 400, _openai("too long", "context_length_exceeded")),
        Refusal(TOO_LONG, 413, _openai("too large")),
    ],
    filtered=[
        Refusal(FILTERED, 400, _openai("flagged", "content_policy_violation")),
        Refusal(FILTERED, 400, _openai("filtered", "content_filter")),
    ],
    broken=[(reason, sse(body)) for reason, body in _OPENAI_CODED.items()],
    late=list(_OPENAI_CODED.items()),
)
RESPONSES = Refusals(
    rejected=OPENAI.rejected,
    auth=OPENAI.auth,
    missing=OPENAI.missing[1:],
    limited=OPENAI.limited,
    billing=OPENAI.billing,
    passing=OPENAI.passing,
    too_long=OPENAI.too_long,
    filtered=OPENAI.filtered,
    broken=[
        (
            BUSY,
            sse(
                {
                    "type": "response.failed",
                    "response": {
                        "id": "resp_1",
                        "object": "response",
                        "status": "failed",
                        "model": "gpt-x-2026",
                        "output": [],
                        "error": {"code": "server_is_overloaded", "message": f"later ({KEY})"},
                    },
                },
                event=True,
            ),
        ),
        (
            LIMITED,
            sse({"type": "error", "code": "rate_limit_exceeded", "message": f"slow ({KEY})"}, event=True),
        ),
    ],
    late=[
        (
            BUSY,
            {
                "id": "resp_1",
                "object": "response",
                "status": "failed",
                "model": "gpt-x-2026",
                "output": [],
                "error": {"code": "server_is_overloaded", "message": f"later ({KEY})"},
            },
        ),
        (BILLING, _OPENAI_CODED[BILLING]),
    ],
)
_TOOL_USE_FAILED = _openai("Failed to call a function", "tool_use_failed", status_code=400)
GROQ = Refusals(
    rejected=OPENAI.rejected,
    auth=[
        Refusal(REFUSED, 401, _openai("Invalid API Key", "invalid_api_key")),
        Refusal(REFUSED, 403, _openai("Access denied", "permissions_error", "permissions_error")),
    ],
    missing=[Refusal(MISSING, 404, _openai("The model `m` does not exist", "model_not_found"))],
    limited=Refusal(LIMITED, 429, _openai("Rate limit reached", "rate_limit_exceeded", "tokens")),
    billing=[Refusal(BILLING, 402, _openai("pay"))],
    passing=_passing(_openai("Service Unavailable", None, "internal_server_error")),
    too_long=[
        Refusal(TOO_LONG, 400, _openai("Please reduce the length", "context_length_exceeded")),
        # Its code speaks of a rate, but no wait makes the request any smaller.
        Refusal(TOO_LONG, 413, _openai("Request too large for model", "rate_limit_exceeded", "tokens")),
    ],
    broken=[(REJECTED, b"event: error\n" + sse(_TOOL_USE_FAILED)), *OPENAI.broken],
    late=[(REJECTED, _TOOL_USE_FAILED)],
)
_LATE_NUMBERED = [
    (REFUSED, _numbered(401, "No auth credentials found")),
    (BILLING, _numbered(402, "Insufficient credits")),
    (FILTERED, _numbered(403, "Input flagged", reasons=["violence"], flagged_input="x")),
    (LIMITED, _numbered(429, "Rate limited", provider_name="Someone", raw="slow")),
    (FAILED, _numbered(502, "Provider returned error", provider_name="Someone")),
    (BUSY, _numbered(503, "No provider available")),
]
OPENROUTER = Refusals(
    rejected=[Refusal(REJECTED, 400, _numbered(400, "bad temperature"))],
    auth=[
        Refusal(REFUSED, 401, _numbered(401, "No auth credentials found")),
        Refusal(REFUSED, 403, _numbered(403, "Key disabled")),
    ],
    missing=[
        Refusal(MISSING, 400, _numbered(400, "some/model is not a valid model ID")),
        Refusal(MISSING, 404, _numbered(404, "No endpoints found for some/model.")),
    ],
    limited=Refusal(LIMITED, 429, _numbered(429, "Rate limited", provider_name="Someone")),
    billing=[
        Refusal(BILLING, 402, _numbered(402, "Insufficient credits")),
        Refusal(BILLING, 429, _numbered(402, "This request requires more credits")),
    ],
    passing=[
        Refusal(FAILED, 500, _numbered(500, "oops")),
        Refusal(FAILED, 502, _numbered(502, "Provider returned error", provider_name="Someone")),
        Refusal(BUSY, 503, _numbered(503, "No provider available")),
        Refusal(BUSY, 529, _numbered(529, "Provider overloaded")),
        Refusal(BUSY, 498, PAGE),
    ],
    too_long=[
        Refusal(TOO_LONG, 400, _numbered(400, "This endpoint's maximum context length is 8 tokens")),
        Refusal(TOO_LONG, 413, _numbered(413, "Payload too large")),
    ],
    filtered=[Refusal(FILTERED, 403, _LATE_NUMBERED[2][1])],
    broken=[(reason, sse({"id": "gen-1", "choices": [], **body})) for reason, body in _LATE_NUMBERED],
    late=_LATE_NUMBERED,
)
HUGGINGFACE = Refusals(
    rejected=OPENAI.rejected,
    auth=[
        Refusal(REFUSED, 401, {"error": f"Invalid username or password. {KEY}"}),
        Refusal(REFUSED, 403, {"error": f"This token lacks the permission. {KEY}"}),
    ],
    missing=[
        Refusal(MISSING, 400, _openai("The requested model 'm' does not exist", "model_not_found")),
        Refusal(MISSING, 404, {"error": f"Model m does not exist {KEY}"}),
    ],
    limited=Refusal(LIMITED, 429, {"error": f"Rate limit reached. {KEY}"}),
    billing=[Refusal(BILLING, 402, {"error": f"You have exceeded your monthly included credits {KEY}"})],
    passing=_passing(
        {"error": f"oops {KEY}"},
        Refusal(BUSY, 503, {"error": "Model m is currently loading", "estimated_time": 0.05}),
    ),
    too_long=[
        Refusal(TOO_LONG, 400, {"error": {"message": "the maximum context length is 8", "code": None}}),
        Refusal(TOO_LONG, 413, {"error": f"Payload too large {KEY}"}),
    ],
    filtered=OPENAI.filtered,
    broken=[(FAILED, sse({"error": f"the back end went away {KEY}"})), *OPENAI.broken],
    late=[(FAILED, {"error": f"the back end went away {KEY}"})],
)
SELF_HOSTED = Refusals(
    rejected=[Refusal(REJECTED, 400, _flat("bad temperature", "BadRequestError", 400))],
    auth=[Refusal(REFUSED, 401, {"error": f"Unauthorized {KEY}"}), Refusal(REFUSED, 403, PAGE)],
    missing=[
        Refusal(MISSING, 404, _flat("The model `m` does not exist.", "NotFoundError", 404)),
        Refusal(MISSING, 404, _openai("The model `m` does not exist.", 404, "NotFoundError")),
    ],
    limited=Refusal(LIMITED, 429, _flat("Too many requests", "RateLimitError", 429)),
    billing=[],
    passing=_passing(
        _flat("EngineCore encountered an issue", "InternalServerError", 500),
        Refusal(BUSY, 503, _openai("Loading model", 503, "unavailable_error")),
    ),
    too_long=[
        Refusal(
            TOO_LONG, 400, _flat("This model's maximum context length is 8 tokens.", "BadRequestError", 400)
        ),
        Refusal(TOO_LONG, 400, _openai("the request exceeds the available context size", 400, "x")),
        Refusal(TOO_LONG, 413, b""),
    ],
    filtered=[],
    broken=[(FAILED, sse({"error": {"message": f"EngineCore died {KEY}", "type": "x", "code": 500}}))],
    late=[(FAILED, {"error": f"slot unavailable {KEY}"})],
)
_SPENT = {"error_code": "enforced_spend_limit_reached"}
ANTHROPIC = Refusals(
    rejected=[Refusal(REJECTED, 400, _anthropic("invalid_request_error", "tools.0: wrong"))],
    auth=[
        Refusal(REFUSED, 401, _anthropic("authentication_error", "invalid x-api-key")),
        Refusal(REFUSED, 403, _anthropic("permission_error", "not yours")),
    ],
    missing=[Refusal(MISSING, 404, _anthropic("not_found_error", "model: m"))],
    limited=Refusal(LIMITED, 429, _anthropic("rate_limit_error", "slow")),
    billing=[
        Refusal(BILLING, 402, _anthropic("billing_error", "pay")),
        Refusal(BILLING, 400, _anthropic("invalid_request_error", "Your credit balance is too low")),
        Refusal(BILLING, 429, _anthropic("rate_limit_error", "spent", details=_SPENT)),
    ],
    passing=[
        Refusal(FAILED, 500, _anthropic("api_error", "oops")),
        Refusal(FAILED, 502, PAGE),
        Refusal(BUSY, 503, _anthropic("overloaded_error", "busy")),
        Refusal(BUSY, 529, _anthropic("overloaded_error", "Overloaded")),
        Refusal(BUSY, 498, PAGE),
    ],
    too_long=[
        Refusal(TOO_LONG, 400, _anthropic("invalid_request_error", "prompt is too long: 9 > 8")),
        Refusal(TOO_LONG, 413, _anthropic("request_too_large", "too large")),
    ],
    filtered=[
        Refusal(
            FILTERED, 400, _anthropic("invalid_request_error", "Output blocked by content filtering policy")
        )
    ],
    broken=[
        (BUSY, sse(_anthropic("overloaded_error", "Overloaded"), event=True)),
        (FAILED, sse(_anthropic("api_error", "oops"), event=True)),
    ],
    late=[(BUSY, _anthropic("overloaded_error", "Overloaded"))],
)
_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
GEMINI = Refusals(
    rejected=[Refusal(REJECTED, 400, _gemini(400, "INVALID_ARGUMENT", "Unknown name"))],
    auth=[
        Refusal(REFUSED, 400, _gemini(400, "INVALID_ARGUMENT", "API key not valid", _INVALID)),
        Refusal(REFUSED, 401, _gemini(401, "UNAUTHENTICATED", "no")),
        Refusal(REFUSED, 403, _gemini(403, "PERMISSION_DENIED", "no")),
    ],
    missing=[Refusal(MISSING, 404, _gemini(404, "NOT_FOUND", "models/m is not found"))],
    limited=Refusal(LIMITED, 429, _gemini(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota")),
    billing=[
        Refusal(BILLING, 429, _gemini(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.")),
        Refusal(BILLING, 400, _gemini(400, "FAILED_PRECONDITION", "Please enable billing")),
    ],
    passing=[
        Refusal(FAILED, 500, _gemini(500, "INTERNAL", "oops")),
        Refusal(FAILED, 502, PAGE),
        Refusal(BUSY, 503, _gemini(503, "UNAVAILABLE", "The model is overloaded.")),
        Refusal(BUSY, 503, [_gemini(503, "UNAVAILABLE", "wrapped, as in streams")]),
        Refusal(BUSY, 529, PAGE),
        Refusal(BUSY, 498, PAGE),
    ],
    too_long=[
        Refusal(
            TOO_LONG,
            400,
            _gemini(
                400,
                "INVALID_ARGUMENT",
                "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            ),
        ),
        Refusal(TOO_LONG, 413, b""),
    ],
    broken=[
        (BUSY, sse(_gemini(503, "UNAVAILABLE", "overloaded"))),
        (LIMITED, sse(_gemini(429, "RESOURCE_EXHAUSTED", "slow"))),
    ],
    late=[(BUSY, _gemini(503, "UNAVAILABLE", "overloaded"))],
)


def _aws(reason: str, status: int, name: str, message: str) -> Refusal:
    said = {"message": f"{message} ({KEY})"}
    return Refusal(reason, status, said, {"x-amzn-ErrorType": f"{name}:http://x/"})


_AWS_LATE = {"Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}, "Version": "1.0"}
BEDROCK = Refusals(
    rejected=[_aws(REJECTED, 400, "ValidationException", "messages: bad")],
    auth=[
        _aws(REFUSED, 403, "AccessDeniedException", "no access"),
        _aws(REFUSED, 403, "UnrecognizedClientException", "bad token"),
        _aws(REFUSED, 401, "NotAuthorized", "Unauthorized"),
    ],
    missing=[
        _aws(MISSING, 400, "ValidationException", "The provided model identifier is invalid."),
        _aws(MISSING, 404, "ResourceNotFoundException", "gone"),
    ],
    limited=_aws(LIMITED, 429, "ThrottlingException", "slow down"),
    billing=[_aws(BILLING, 400, "ServiceQuotaExceededException", "your quota")],
    passing=[
        _aws(FAILED, 500, "InternalServerException", "oops"),
        Refusal(FAILED, 502, PAGE),
        _aws(BUSY, 503, "ServiceUnavailableException", "busy"),
        _aws(BUSY, 429, "ModelNotReadyException", "loading"),
        _aws(FAILED, 424, "ModelErrorException", "the model failed"),
        Refusal(BUSY, 529, PAGE),
        Refusal(BUSY, 498, PAGE),
    ],
    too_long=[
        _aws(TOO_LONG, 400, "ValidationException", "Input is too long for requested model."),
        Refusal(TOO_LONG, 413, b""),
    ],
    filtered=[_aws(FILTERED, 400, "ValidationException", "blocked by our content filters")],
    broken=[
        (LIMITED, event_stream.exception("throttlingException", {"message": f"slow ({KEY})"})),
        (BUSY, event_stream.exception("serviceUnavailableException", {"message": f"busy ({KEY})"})),
        (FAILED, event_stream.exception("modelStreamErrorException", {"message": f"oops ({KEY})"})),
    ],
    late=[("PROVIDER_PROTOCOL", _AWS_LATE)],
)


def _ollama(message: str) -> Json:
    return {"error": f"{message} {KEY}"}


OLLAMA = Refusals(
    rejected=[Refusal(REJECTED, 400, _ollama('"m" does not support tools'))],
    auth=[Refusal(REFUSED, 401, _ollama("unauthorized")), Refusal(REFUSED, 403, b"")],
    missing=[Refusal(MISSING, 404, _ollama('model "m" not found, try pulling it first'))],
    limited=Refusal(LIMITED, 429, _ollama("too many requests")),
    billing=[],
    passing=_passing(
        _ollama("model runner has unexpectedly stopped"),
        Refusal(BUSY, 500, _ollama("server busy. maximum pending requests exceeded")),
    ),
    too_long=[
        Refusal(TOO_LONG, 400, _ollama("the input length exceeds the context length")),
        Refusal(TOO_LONG, 413, b""),
    ],
    broken=[
        (FAILED, b'{"error":"an error was encountered while running the model %b"}\n' % KEY.encode()),
        (TOO_LONG, b'{"error":"the prompt exceeds the available context size %b"}\n' % KEY.encode()),
    ],
    late=[(FAILED, _ollama("an error was encountered while running the model"))],
)
