"""A real OpenID Connect issuer on a loopback port, as far as a resource server sees one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.ports import free_port

AUDIENCE = "omnihub-tests"


class Issuer:
    """Signs tokens and publishes its keys. `failing` makes it answer 503; `requests` counts key fetches."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/realm"
        self.failing = False
        self.claimed_issuer = self.url
        self.requests = 0
        self.published: list[dict[str, Any]] = []
        self._private: dict[str, tuple[Any, str]] = {}
        self.add_key("rsa-1", "RS256")

    def add_key(self, key_id: str, algorithm: str, *, names_algorithm: bool = True) -> None:
        private, to_jwk = _generate(algorithm)
        self._private[key_id] = (private, algorithm)
        fields = json.loads(to_jwk(private.public_key()))
        fields.update(kid=key_id, use="sig", **({"alg": algorithm} if names_algorithm else {}))
        self.published.append(fields)

    def token(self, expires_at: float, key_id: str = "rsa-1", **claims: Any) -> str:
        private, algorithm = self._private[key_id]
        body = {"iss": self.url, "aud": AUDIENCE, "sub": "1", "exp": expires_at, **claims}
        return jwt.encode(body, private, algorithm=algorithm, headers={"kid": key_id})

    async def discover(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.claimed_issuer, "jwks_uri": f"{self.url}/keys"})

    async def keys(self, _: web.Request) -> web.Response:
        self.requests += 1
        if self.failing:
            raise web.HTTPServiceUnavailable
        return web.json_response({"keys": self.published})

    async def redirect(self, _: web.Request) -> web.Response:
        raise web.HTTPFound(f"{self.url}/keys")

    async def nonsense(self, _: web.Request) -> web.Response:
        return web.Response(text="<html>not keys</html>")

    async def endless(self, _: web.Request) -> web.Response:
        return web.Response(text='{"keys": [' + " " * 2_000_000 + "]}")

    async def odd(self, _: web.Request) -> web.Response:
        shared = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}
        broken = {"kty": "RSA", "kid": "broken", "n": "", "e": "!"}
        return web.json_response(
            {"keys": [shared, broken, "text", {"kty": "RSA", "use": "enc", "kid": "enc"}]}
        )


def _generate(algorithm: str) -> tuple[Any, Any]:
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm.to_jwk
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm.to_jwk
    return rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm.to_jwk


def _routes(issuer: Issuer) -> Iterator[web.RouteDef]:
    yield web.get("/realm/.well-known/openid-configuration", issuer.discover)
    for name in ("keys", "redirect", "nonsense", "endless", "odd"):
        yield web.get(f"/realm/{name}", getattr(issuer, name))


@asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    port = free_port()
    issuer = Issuer(port)
    application = web.Application()
    application.add_routes(list(_routes(issuer)))
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield issuer
    finally:
        await runner.cleanup()
