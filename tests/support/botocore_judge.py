"""botocore as the judge: of requests, of signatures, and as a client of our fakes."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any
from urllib.parse import unquote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.session import Session
from botocore.validate import ParamValidator

from tests.support.fault_server import Recorded

_BLOBS = {"bytes", "redactedContent"}


@cache
def _model(service: str) -> Any:
    return Session().get_service_model(service)


def client(service: str, url: str, region: str, key_id: str, secret: str) -> Any:
    """Return the vendor's own client, which asks once."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5)
    return Session().create_client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=config,
    )


def check_request(body: bytes, operation: str = "Converse") -> dict[str, Any]:
    """Return a body that the vendor's own model of requests accepts: unknown fields are errors."""
    written: dict[str, Any] = json.loads(body)
    shape = _model("bedrock-runtime").operation_model(operation).input_shape
    report = ParamValidator().validate({"modelId": "m.m", **_with_bytes(written)}, shape)
    assert not report.has_errors(), report.generate_report()
    return written


def _with_bytes(value: Any) -> Any:
    """Return the value as a caller of the client gives it: bytes are bytes there."""
    if isinstance(value, dict):
        return {
            name: base64.b64decode(inner, validate=True) if name in _BLOBS else _with_bytes(inner)
            for name, inner in value.items()
        }
    return [_with_bytes(inner) for inner in value] if isinstance(value, list) else value


def expected_authorization(
    request: Recorded, url: str, region: str, key_id: str, secret: str, token: str | None = None
) -> str:
    """Return the Authorization header that botocore gives a request as it arrived."""
    names = request.headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    signed = {name: request.headers[name] for name in names if name not in {"x-amz-date", "host"}}
    repeated = AWSRequest(request.method, url + request.path, signed, request.body)
    repeated.context["timestamp"] = request.headers["X-Amz-Date"]
    signer = SigV4Auth(Credentials(key_id, secret, token), "bedrock", region)
    signer._modify_request_before_signing(repeated)
    canonical = signer.canonical_request(repeated)
    signature = signer.signature(signer.string_to_sign(repeated, canonical), repeated)
    signer._inject_signature_to_request(repeated, signature)
    return str(repeated.headers["Authorization"])


def model_in(path: str) -> str:
    """Return the model that a path names."""
    return unquote(path.split("/")[2])
