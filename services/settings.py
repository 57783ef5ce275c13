"""All settings of a process: default < omnihub.toml < environment. Unknown keys are errors.

`OMNIHUB_ROUTER__BASELINE_MODEL` sets `baseline_model` in `[router]`; names of providers and models
keep the case they have in the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from services.agents.settings import AgentsSettings
from services.auth.settings import AuthSettings
from services.billing.settings import BillingSettings, PriceSettings
from services.common.settings import Secret, Section
from services.edge.settings import EdgeSettings
from services.gateway.settings import GatewaySettings
from services.providers.adapters.known import providers_from_environment
from services.providers.settings import ProviderSettings
from services.router.settings import RouterSettings, RouteSettings
from services.workflow.settings import WorkflowSettings

PREFIX = "OMNIHUB_"
CONFIG_VARIABLE = "OMNIHUB_CONFIG"
DEFAULT_CONFIG = Path("omnihub.toml")
MOST_WORKERS = 128


class SettingsError(Exception):
    """The settings cannot be used; the message names each key and what is wrong with it."""


class ModelSettings(RouteSettings):
    """`[models."name"]`: a route, and perhaps a price of its own."""

    price: PriceSettings | None = None
    """What this model costs; without it the vendor's list price applies."""


class PeerSettings(Section):
    """Where other services are: `local` (this process) or a gRPC target such as `10.0.0.5:9090`."""

    auth: str = "local"
    """The auth service."""
    billing: str = "local"
    """The billing service."""
    providers: str = "local"
    """The providers service."""
    router: str = "local"
    """The router."""
    workflow: str = "local"
    """The workflow service."""
    agents: str = "local"
    """The agents service."""
    facade: str = "local"
    """`host:port` of the gateway's HTTP listener, for an edge that runs alone."""
    files: str = "local"
    """`host:port` of the workflow service's HTTP listener, for an edge that runs alone."""


class LogSettings(Section):
    """Logging."""

    format: Literal["auto", "console", "json"] = "auto"
    """`console` is for people; `auto` means that on a terminal and JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""


class TelemetrySettings(Section):
    """Traces. Metrics are always at /metrics of the internal HTTP listener."""

    otlp_endpoint: str = ""
    """OTLP/gRPC address of a collector, http://host:4317 for plain text, https:// for TLS; empty: none."""
    sample_ratio: float = Field(0.1, ge=0, le=1)
    """Share of requests that are traced when the caller has not decided."""


class InternalTlsSettings(Section):
    """Mutual TLS between processes."""

    certificate_file: Path
    """PEM certificate of this process."""
    key_file: Path
    """PEM private key of this process."""
    ca_file: Path
    """PEM certificates of the authority that signs all processes."""


class Settings(Section):
    """Everything a process can be told."""

    port: int = Field(8080, ge=0, le=65535)
    """The public port. `PORT` sets it too."""
    data_dir: Path = Path(".omnihub")
    """Where the embedded databases and files live."""
    grpc_listen: str = "127.0.0.1:9090"
    """Internal gRPC listener, for peers and the edge."""
    http_listen: str = Field("127.0.0.1:9091", pattern=r"^(\S+:\d{1,5}|unix:/.+)$")
    """Internal HTTP listener: facade, /health, /ready and /metrics. `host:port` or `unix:/path`."""
    workers: int = Field(1, ge=1, le=MOST_WORKERS)
    """Processes that answer chat; more than one need PostgreSQL. `serve --workers` sets it too."""
    database_url: str = Field("", pattern=r"^(postgresql://.*)?$")
    """`postgresql://...`; empty: SQLite files in data_dir."""
    amqp_url: Secret | None = None
    """`amqp://user:password@host/`; not set: asynchronous work is drained in the process that begins it."""
    storage_url: str = ""
    """Where the contents of files lie, such as `s3://bucket/prefix`; empty: a folder in data_dir."""
    public_url: str = Field("", pattern=r"^(https?://\S+)?$")
    """How callers reach the platform: links to files and notifications of providers begin with it."""
    url: str = Field("", pattern=r"^(https?://\S+)?$")
    """Where the command line finds the platform; empty: on this machine, at `port`."""
    api_key: Secret | None = None
    """The key of the command line; not set: the first key, from `bootstrap_api_key` or `data_dir`."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web clients, such as `https://app.example.com`."""
    bootstrap_api_key: Secret | None = None
    """The first key; generated and written to `<data_dir>/bootstrap-key` when not set."""
    bootstrap_credits: Decimal = Field(Decimal(100), ge=0, le=1_000_000)
    """Credits of the first organisation."""
    master_key: Secret | None = None
    """Encrypts secrets in the database."""
    drain_timeout_s: float = Field(30, ge=0, le=3600)
    """How long requests under way may take once the process is told to stop."""
    peers: PeerSettings = PeerSettings()
    internal_tls: InternalTlsSettings | None = None
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    billing: BillingSettings = BillingSettings()
    gateway: GatewaySettings = GatewaySettings()
    router: RouterSettings = RouterSettings()
    edge: EdgeSettings = EdgeSettings()
    workflow: WorkflowSettings = WorkflowSettings()
    agents: AgentsSettings = AgentsSettings()
    providers: dict[str, ProviderSettings] = {}
    models: dict[str, ModelSettings] = {}

    @model_validator(mode="after")
    def _routes_name_providers(self) -> Settings:
        for name, model in self.models.items():
            routes = [model.route, *(version.route for version in model.versions.values())]
            for target in (target for route in routes for target in route):
                provider = target.partition("/")[0]
                if provider not in self.providers:
                    known = ", ".join(sorted(self.providers))
                    raise ValueError(
                        f'models."{name}".route: {target!r} needs [providers.{provider}]; configured: {known}'
                    )
        return self


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of this process. Raises SettingsError."""
    environment = os.environ if environment is None else environment
    values = _read_file(environment)
    written = values.get("providers", {})
    if not isinstance(written, Mapping):
        raise SettingsError("providers: expected tables such as [providers.wall]")
    values["providers"] = _merge(providers_from_environment(environment), written)
    if "PORT" in environment:
        values["port"] = environment["PORT"]
    values = _merge(values, _read_environment(environment, values))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a further process of ours: this one's, with some settings of its own."""
    return {**os.environ, **changes}


def _read_file(environment: Mapping[str, str]) -> dict[str, Any]:
    named = environment.get(CONFIG_VARIABLE)
    path = Path(named) if named else DEFAULT_CONFIG
    if not named and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _read_environment(environment: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `OMNIHUB_A__B__C` variables as nested values."""
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or name.startswith(f"{PREFIX}TEST_"):
            continue
        node, known = found, values
        *parents, last = name.removeprefix(PREFIX).lower().split("__")
        for parent in parents:
            key = _existing(parent, known)
            node = node.setdefault(key, {})
            known = known.get(key, {}) if isinstance(known, Mapping) else {}
            if not isinstance(node, dict):
                raise SettingsError(
                    f"{name}: another variable gives {key} as a single value; remove that one"
                )
        key = _existing(last, known)
        if isinstance(node.get(key), dict):
            raise SettingsError(f"{name}: other variables give settings inside {key}; remove this one")
        node[key] = _list_or_text(last, value)
    return found


def _existing(name: str, known: Any) -> str:
    """Return the key of the file that a variable's part means: variables have no case."""
    keys = known if isinstance(known, Mapping) else {}
    return next((key for key in keys if key.lower().replace("-", "_") == name), name)


def _list_or_text(name: str, value: str) -> Any:
    lists = (
        *("cors_origins", "route", "strengths", "capabilities", "free_providers"),
        *("aliases", "fallback", "regions", "tiers", "private_hosts"),
    )
    return [item.strip() for item in value.split(",") if item.strip()] if name in lists else value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and before is not None and not isinstance(before, Mapping):
            raise SettingsError(f"{key}: expected a table of settings in the file, not a single value")
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in problem["loc"]) or "settings"
        hint = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{path}: {hint}")
    return "\n".join(lines)
