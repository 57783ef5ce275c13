"""Notifications: `t=<seconds>,v0=<hex of HMAC-SHA256 over t.body>`, at most 30 minutes old."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaOutput
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.providers.media.elevenlabs.transcription import usage_of
from services.providers.media.http_adapter import texts

HEADER = "elevenlabs-signature"
OLDEST_S = 30 * 60
# Clocks differ.
AHEAD_S = 5 * 60
# Digits.
LONGEST_TIME = 12


class ForgedError(Exception):
    """A notification is not genuine, or too old."""

    reason = "INVALID_CREDENTIAL"


class UnreadableError(Exception):
    """A genuine notification says nothing that is known here."""

    reason = "INVALID_ARGUMENT"


def verify(signed: str, body: bytes, secrets: Sequence[str], now: float) -> None:
    """Raise ForgedError unless one of `secrets` has signed `body`, not long ago."""
    parts = dict(part.strip().partition("=")[::2] for part in signed.split(","))
    at, signature = parts.get("t", ""), parts.get("v0", "")
    if not (at.isascii() and at.isdecimal() and len(at) <= LONGEST_TIME) or not signature:
        raise ForgedError(f"the header {HEADER} is missing or malformed")
    if not secrets:
        raise ForgedError("set `webhook_secrets` of this provider in omnihub.toml")
    age = now - int(at)
    if age > OLDEST_S:
        raise ForgedError("the notification is too old")
    if age < -AHEAD_S:
        raise ForgedError("the notification's time is ahead of ours")
    message = f"{at}.".encode() + body
    genuine = [hmac.new(secret.encode(), message, hashlib.sha256).hexdigest() for secret in secrets]
    if not any(hmac.compare_digest(each.encode(), signature.encode()) for each in genuine):
        raise ForgedError("the notification's signature is wrong")


def read(body: bytes) -> pb.ReadWebhookResponse:
    """Return what a transcription's notification says. Raises UnreadableError."""
    try:
        event = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableError("the notification is no JSON object") from None
    data = event.get("data")
    found = data.get("transcription") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(found, dict) or not texts(found.get("text")):
        raise UnreadableError(f"the notification {texts(event.get('type')) or 'without a type'} is not known")
    facts = MediaOutput(mime="application/json", details_json=msgspec.json.encode(found).decode())
    output = pb.ProviderOutput(text=found["text"], facts=facts)
    return pb.ReadWebhookResponse(
        # They have no id: the same delivery has the same content.
        event_id=hashlib.sha256(body).hexdigest(),
        provider_job_id=texts(data.get("request_id")),
        progress=pb.MediaProgress(state="succeeded", outputs=[output], usage=usage_of(found, b"")),
    )
