"""The clauses of the provider contract by number. docs/plugins.md explains them."""

from __future__ import annotations

from collections.abc import Mapping

CLAUSES: Mapping[str, str] = {
    "CAP-1": "GetCapabilities answers, and names at least one provider",
    "CAP-2": "Capabilities: each provider once, features and wire formats are words of the contract",
    "CAP-3": "GetCapabilities is idempotent: the same answer while nothing has changed",
    "HEALTH-1": "CheckHealth answers with `healthy`, and with `detail` when that is false; it is idempotent",
    "HEALTH-2": "A server of grpc.health.v1 says SERVING while it serves",
    "MODEL-1": "ListModels answers, each model once and with its name",
    "MODEL-2": "ListModels is idempotent",
    "ERROR-1": "A status but OK carries ErrorInfo: domain `omnihub`, a reason of the table and its code",
    "ERROR-2": "An error of an attempt names `provider`, `model`, `phase` and `retryable` in its metadata",
    "ERROR-3": "An unknown provider is NOT_FOUND",
    "ERROR-4": "An unknown model is MODEL_NOT_FOUND",
    "ERROR-5": "A request that breaks a constraint of the contract is INVALID_ARGUMENT",
    "ERROR-6": "An error repeats neither the prompt nor a header of the caller",
    "ANSWER-1": "Without a wire format the answer is a `message` of the assistant with content",
    "ANSWER-2": "An answer says why it ended, in a word of the contract",
    "ANSWER-3": "An answer reports its usage; counted ones are marked `estimated`",
    "ANSWER-4": "Totals of the usage include their parts",
    "RECEIPT-1": "A receipt names a parameter, and its outcome in a word of the contract",
    "RECEIPT-2": "Each parameter that was sent is in the receipt",
    "RECEIPT-3": "In strict mode a parameter that would be dropped is refused with PARAMETER_UNSUPPORTED",
    "RECEIPT-4": "What the provider does not offer is dropped in the receipt or refused, never silently",
    "LIMIT-1": "Output stays within `output_cap` when the caller named no limit",
    "STREAM-1": "The first message of a stream is `start`, and no other is",
    "STREAM-2": "A stream has exactly one `end`, and nothing comes after it",
    "STREAM-3": "A stream that does not reach its `end` raises a status",
    "STREAM-4": "A part is started once, and its deltas come between its start and its stop",
    "STREAM-5": "Each part that was started is stopped once, before `end`",
    "STREAM-6": "A delta fits the kind of its part",
    "STREAM-7": "Raw frames follow when `start` names their format, typed events when it names none",
    "STREAM-8": "`end` holds finish and usage, as an answer does",
    "STREAM-9": "A stream has the content of the answer that is not streamed",
    "STREAM-10": "Each message of a stream holds an event",
    "CANCEL-1": "A cancelled call ends at the provider too: it keeps nothing that other calls need",
    "TIME-1": "A call past its deadline ends, and the provider works on",
    "TIME-2": "An attempt past its `timeouts` is PROVIDER_TIMEOUT",
    "PARALLEL-1": "Ten attempts at the same time all succeed",
    "PARALLEL-2": "No attempt gets content of another",
    "INPUT-1": "Text of any script survives, in answers and across the pieces of a stream",
    "INPUT-2": "A request of 8 MiB is answered, or refused with a reason of the contract",
    "INPUT-3": "Instructions are taken from system and from developer",
    "INPUT-4": "Media that is offered arrives, or is refused by a model that lacks it; it is never dropped",
    "TOOL-1": "A tool call has an id of its own and the name of a tool that was sent",
    "TOOL-2": "The pieces of a streamed tool call make one whole call",
    "TOOL-3": "A conversation with a tool call and its result is accepted",
    "TOOL-4": "Results of parallel calls are accepted together, also of a tool that failed",
    "SCHEMA-1": "With a JSON Schema the answer is a JSON document that fits it",
    "REASON-1": "Reasoning of an answer is accepted back as it came",
    "PREFILL-1": "A conversation that ends with a turn of the assistant is gone on with",
    "COUNT-1": "CountTokens, where it is served, counts at least one token, and the same ones again",
    "EMBED-1": "Vectors come in the order of the inputs, one for each, of one size",
    "EMBED-2": "`dimensions` is the size of the vectors, or refused",
    "EMBED-3": "Embed reports its usage",
    "RAW-1": "A raw answer is of its format, and the fields beside it say the same",
    "RAW-2": "Raw frames and `raw_tail` together are one stream of their format, with its text in `text`",
}


class BreachError(Exception):
    """A clause was broken."""

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(message)
        self.clause = clause
        self.message = message
