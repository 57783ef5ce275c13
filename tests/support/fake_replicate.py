"""A server that answers as Replicate; the official client judges it in tests/integration/media."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from tests.support.fake_vendor import FakeVendor

KEY = "r8_test_0123456789"
VERSION = "ab" * 32


class FakeReplicate(FakeVendor):
    """Predictions move one step along `steps` with each look at them."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: dict[str, dict[str, Any]] = {}
        self.steps = ["starting", "processing", "succeeded"]
        self.output: Any = ["https://replicate.delivery/x/out-0.png"]
        self.error = "boom"
        self.metrics = {"predict_time": 2.5}
        self.logs = " 40%|####      | 20/50"
        self.secret = "whsec_" + base64.b64encode(b"first-secret-of-replicate").decode()
        self.page = 100
        add = self.route
        add("POST", "/v1/predictions", self.create)
        add("POST", "/v1/models/{owner}/{name}/predictions", self.create)
        add("POST", "/v1/deployments/{owner}/{name}/predictions", self.create)
        add("GET", "/v1/predictions", self.listing)
        add("GET", "/v1/predictions/{id}", self.get)
        add("POST", "/v1/predictions/{id}/cancel", self.cancel)
        add("GET", "/v1/webhooks/default/secret", self.webhook_secret)
        add("GET", "/v1/files/{name}", self.file)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {KEY}":
            return None
        problem = {"title": "Unauthenticated", "detail": "You did not pass a valid token", "status": 401}
        return web.json_response(problem, status=401, content_type="application/problem+json")

    async def create(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        document = await request.json()
        number = len(self.predictions)
        identifier = f"pred{number:022d}"
        info = request.match_info
        prediction = {
            "id": identifier,
            "model": f"{info['owner']}/{info['name']}" if "owner" in info else "owner/name",
            "version": document.get("version", VERSION),
            "input": document["input"],
            "output": None,
            "logs": "",
            "error": None,
            "status": self.steps[0],
            "created_at": (datetime.now(UTC) + timedelta(milliseconds=number)).isoformat(),
            "started_at": None,
            "completed_at": None,
            "metrics": None,
            "webhook": document.get("webhook"),
            "urls": {
                "get": f"{self.url}/v1/predictions/{identifier}",
                "cancel": f"{self.url}/v1/predictions/{identifier}/cancel",
            },
            "_step": 0,
        }
        self.predictions[identifier] = prediction
        self._show(prediction)
        return self._answer(prediction, 201)

    def _show(self, prediction: dict[str, Any]) -> None:
        status = self.steps[min(prediction["_step"], len(self.steps) - 1)]
        prediction["status"] = status
        prediction["logs"] = self.logs if status != "starting" else ""
        if status == "succeeded":
            prediction |= {"output": self.output, "metrics": self.metrics}
        if status == "failed":
            prediction |= {"error": self.error, "metrics": self.metrics}

    def _answer(self, prediction: dict[str, Any], status: int = 200) -> web.Response:
        return web.json_response(self.shown(prediction["id"]), status=status)

    def shown(self, identifier: str) -> dict[str, Any]:
        """Return a prediction as the API shows it."""
        return {name: value for name, value in self.predictions[identifier].items() if name[0] != "_"}

    async def get(self, request: web.Request) -> web.Response:
        prediction = self.predictions.get(request.match_info["id"])
        if prediction is None:
            return web.json_response({"detail": "not found", "status": 404}, status=404)
        if prediction["status"] not in ("canceled", "succeeded", "failed", "aborted"):
            prediction["_step"] += 1
            self._show(prediction)
        return self._answer(prediction)

    async def listing(self, request: web.Request) -> web.Response:
        start = int(request.query.get("cursor", 0))
        rows = [self.shown(name) for name in reversed(self.predictions)]
        more = start + self.page < len(rows)
        following = f"{self.url}/v1/predictions?cursor={start + self.page}" if more else None
        return web.json_response(
            {"previous": None, "next": following, "results": rows[start : start + self.page]}
        )

    async def cancel(self, request: web.Request) -> web.Response:
        prediction = self.predictions.get(request.match_info["id"])
        if prediction is None:
            return web.json_response({"detail": "not found", "status": 404}, status=404)
        if prediction["status"] in ("starting", "processing"):
            prediction["status"] = "canceled"
        return self._answer(prediction)

    async def webhook_secret(self, request: web.Request) -> web.Response:
        return self._refusal(request) or web.json_response({"key": self.secret})

    async def file(self, request: web.Request) -> web.Response:
        return self._refusal(request) or web.Response(body=b"a file of the vendor", content_type="image/png")

    def notification(
        self, identifier: str, secret: str = "", age_s: float = 0.0, **changes: Any
    ) -> tuple[dict[str, str], bytes]:
        """Return headers and body of a notification, signed as the vendor signs."""
        body = json.dumps(self.shown(identifier) | changes).encode()
        sent = str(int(time.time() - age_s))
        key = base64.b64decode((secret or self.secret).removeprefix("whsec_"))
        message = f"msg_{identifier}.{sent}.".encode() + body
        signature = base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
        headers = {
            "webhook-id": f"msg_{identifier}",
            "webhook-timestamp": sent,
            "webhook-signature": f"v1,{signature}",
        }
        return headers, body
