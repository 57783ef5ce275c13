"""The signatures of fal's notifications: ED25519 over the headers and the hash of the body as it came."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.providers.domain.failure import ForgedWebhookError
from services.providers.media.signing_keys import SigningKeys

# Seconds that a notification may be old, or ahead of our clock.
TOLERANCE_S = 300
REQUEST_ID, _USER, _TIME, _SIGNATURE = (
    f"x-fal-webhook-{name}" for name in ("request-id", "user-id", "timestamp", "signature")
)


async def check_signature(
    provider: str, keys: SigningKeys[Ed25519PublicKey], headers: Mapping[str, str], body: bytes
) -> None:
    """Raise ForgedWebhookError unless one of the keys has signed this body a moment ago."""
    request_id, user, sent, signature = (
        headers.get(name, "") for name in (REQUEST_ID, _USER, _TIME, _SIGNATURE)
    )
    if not (request_id and sent and signature):
        raise ForgedWebhookError(provider, "its signature is missing")
    if not (sent.isascii() and sent.isdecimal() and len(sent) <= 12):
        raise ForgedWebhookError(provider, "its time is no number of seconds")
    if abs(time.time() - int(sent)) > TOLERANCE_S:
        raise ForgedWebhookError(provider, f"it was not sent within {TOLERANCE_S} s of now")
    message = "\n".join((request_id, user, sent, hashlib.sha256(body).hexdigest())).encode()
    try:
        signed = bytes.fromhex(signature)
    except ValueError:
        raise ForgedWebhookError(provider, "its signature is not hexadecimal") from None
    if _signed_by(await keys.current(), signed, message):
        return
    if not _signed_by(await keys.renewed(), signed, message):
        raise ForgedWebhookError(provider, "its signature fits no key")


def public_key(row: object) -> Ed25519PublicKey | None:
    """Return the key of a row of a JWKS; None for one of another kind."""
    if not isinstance(row, dict) or row.get("crv", "Ed25519") != "Ed25519":
        return None
    text = str(row.get("x"))
    try:
        return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        return None


def _signed_by(keys: Sequence[Ed25519PublicKey], signature: bytes, message: bytes) -> bool:
    for key in keys:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False
