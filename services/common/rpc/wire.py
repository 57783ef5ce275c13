"""What both ends of a gRPC connection agree on: limits and the headers a call travels in."""

from __future__ import annotations

from services.common.rpc.call import Call

# Above the largest body the gateway takes by default, so that one process and many refuse alike.
MESSAGE_LIMIT = 128 * 1024 * 1024
# Error details travel in trailers; gRPC's own limit of 8 kB would replace long ones by RESOURCE_EXHAUSTED.
METADATA_LIMIT = 64 * 1024
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    # A peer that vanished without a word is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Services that restart are found again at once, not after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

REQUEST_ID = "x-omnihub-request-id"
IDENTITY = "x-omnihub-identity"
TRACEPARENT = "traceparent"
IDEMPOTENCY_KEY = "idempotency-key"
# Set by the edge, which takes it away from callers.
CLIENT_ADDRESS = "x-omnihub-client-address"
STATUS_DETAILS = "grpc-status-details-bin"


def metadata_of(call: Call) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that carries a call."""
    metadata = [(REQUEST_ID, call.request_id)]
    if call.identity.token:
        metadata.append((IDENTITY, call.identity.token))
    if call.traceparent:
        metadata.append((TRACEPARENT, call.traceparent))
    if call.idempotency_key:
        metadata.append((IDEMPOTENCY_KEY, call.idempotency_key))
    if call.client_address:
        metadata.append((CLIENT_ADDRESS, call.client_address))
    return tuple(metadata)
