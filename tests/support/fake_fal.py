"""A server that answers as fal's queue; the official client judges it in tests/integration/media."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.fake_vendor import FakeVendor

KEY = "fal-key-id:0123456789abcdef"


class FakeFal(FakeVendor):
    """Requests move one step along `steps` with each look at them."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, dict[str, Any]] = {}
        self.steps = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
        self.ending: dict[str, Any] = {}
        """Further fields of the status of an ended request."""
        self.result: Any = {
            "images": [
                {
                    "url": "https://v3.fal.media/files/a/out.png",
                    "width": 1024,
                    "height": 768,
                    "content_type": "image/png",
                }
            ],
            "seed": 7,
            "has_nsfw_concepts": [False],
            "timings": {"inference": 1.2},
        }
        self.key = Ed25519PrivateKey.generate()
        # The real answers name other hosts; a client must not send them its key.
        self.named_host = ""
        for space in ("", "/workflows"):
            add = self.route
            below = space + "/{owner}/{alias}/requests/{id}"
            add("GET", below + "/status", self.status)
            add("GET", below, self.response)
            add("PUT", below + "/cancel", self.cancel)
        self.route("GET", "/.well-known/jwks.json", self.jwks)
        self.route("POST", "/{app:.+}", self.submit)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Key {KEY}":
            return None
        return web.json_response(
            {"detail": "Cannot access application. Authentication is required."}, status=401
        )

    async def submit(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        identifier = str(uuid.uuid4())
        parts = request.match_info["app"].split("/")
        owner = "/".join(parts[: 3 if parts[0] == "workflows" else 2])
        self.requests[identifier] = {"step": 0, "owner": owner, "input": await request.json()}
        base = f"{self.named_host or self.url}/{owner}/requests/{identifier}"
        answer = {
            "status": "IN_QUEUE",
            "request_id": identifier,
            "response_url": base,
            "status_url": f"{base}/status",
            "cancel_url": f"{base}/cancel",
            "queue_position": 2,
        }
        return web.json_response(answer, headers={"x-fal-request-id": identifier})

    def _found(self, request: web.Request) -> dict[str, Any] | None:
        return self.requests.get(request.match_info["id"])

    def state(self, identifier: str) -> str:
        return self.steps[min(self.requests[identifier]["step"], len(self.steps) - 1)]

    async def status(self, request: web.Request) -> web.Response:
        found = self._refusal(request), self._found(request)
        if found[0] is not None:
            return found[0]
        if found[1] is None:
            return web.json_response({"detail": "Request not found"}, status=404)
        state = self.state(request.match_info["id"])
        found[1]["step"] += 1
        answer: dict[str, Any] = {"status": state, "logs": None}
        if state == "IN_QUEUE":
            answer["queue_position"] = 1
        if state in ("IN_PROGRESS", "COMPLETED"):
            answer["logs"] = [{"message": "20/50", "level": "INFO", "timestamp": "t"}]
        if state == "COMPLETED":
            answer |= {"metrics": {"inference_time": 1.5}, **self.ending}
        return web.json_response(answer, status=200 if state == "COMPLETED" else 202)

    async def response(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        return web.json_response(self.result, headers={"x-fal-billable-units": "0.75"})

    async def cancel(self, request: web.Request) -> web.Response:
        found = self._found(request)
        if found is None:
            return web.json_response({"status": "NOT_FOUND"}, status=404)
        if self.state(request.match_info["id"]) == "COMPLETED":
            return web.json_response({"status": "ALREADY_COMPLETED"}, status=400)
        return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202)

    async def jwks(self, request: web.Request) -> web.Response:
        public = base64.urlsafe_b64encode(self.key.public_key().public_bytes_raw()).decode().rstrip("=")
        return web.json_response({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": public, "kid": "k1"}]})

    def notification(
        self,
        identifier: str,
        key: Ed25519PrivateKey | None = None,
        age_s: float = 0.0,
        **changes: Any,
    ) -> tuple[dict[str, str], bytes]:
        """Return headers and body of a notification, signed as the vendor documents it."""
        document = {
            "request_id": identifier,
            "gateway_request_id": identifier,
            "status": "OK",
            "payload": self.result,
            **changes,
        }
        body = json.dumps(document).encode()
        sent = str(int(time.time() - age_s))
        message = "\n".join((identifier, "user-1", sent, hashlib.sha256(body).hexdigest())).encode()
        headers = {
            "x-fal-webhook-request-id": identifier,
            "x-fal-webhook-user-id": "user-1",
            "x-fal-webhook-timestamp": sent,
            "x-fal-webhook-signature": (key or self.key).sign(message).hex(),
        }
        return headers, body
