"""What a plugin is, and which registrations make sense."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Letters, digits and hyphens in labels; a name as DNS has it.
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_-]{1,63})*\.?"
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A process outside the suite that serves ProviderService."""

    name: str
    address: str
    """`host:port`."""
    remote_provider: str = ""
    tls: bool = False
    ca_certificate: str = ""


@dataclass(frozen=True, slots=True)
class _Violation:
    field: str
    description: str


class InvalidPluginError(Exception):
    """A field of a registration is wrong."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.violations = (_Violation(field, description),)


class PluginExistsError(Exception):
    """The name is taken."""

    reason = "ALREADY_EXISTS"

    def __init__(self, name: str, by_file: bool) -> None:
        owner = "omnihub.toml declares a provider" if by_file else "another plugin is registered"
        advice = "choose another name" if by_file else "remove it first, or choose another name"
        super().__init__(f"{owner} with the name {name!r}: {advice}")
        self.metadata = {"name": name}


class PluginNotFoundError(Exception):
    """No such plugin."""

    reason = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"no plugin is called {name!r}; GET /api/admin/plugins lists them")
        self.metadata = {"name": name}


class ManagedByFileError(Exception):
    """What a file declares is changed in the file."""

    reason = "PRECONDITION_FAILED"

    def __init__(self, name: str) -> None:
        super().__init__(f"omnihub.toml declares {name!r}: change the file and restart")
        self.metadata = {"name": name}


class UnreachablePluginError(Exception):
    """A plugin that does not answer is not registered unless that is forced."""

    reason = "PRECONDITION_FAILED"

    def __init__(self, plugin: Plugin, detail: str) -> None:
        super().__init__(f"{detail}; start it and register it again, or set `force`")
        self.metadata = {"name": plugin.name, "address": plugin.address}


def check_address(address: str, field: str = "plugin.address") -> None:
    """Refuse what is no `host:port`. Raises InvalidPluginError."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536 and len(port) <= 5):
        raise InvalidPluginError(field, f"{address!r} is not host:port, such as 127.0.0.1:7001")
    if bracketed:
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise InvalidPluginError(field, f"{host!r} is not an IPv6 address") from None
    elif not _HOST_NAME.fullmatch(host):
        raise InvalidPluginError(field, f"{host!r} is not the name or address of a host")


def check_certificate(plugin: Plugin) -> None:
    """Refuse a certificate that would not be used, or is none. Raises InvalidPluginError."""
    if not plugin.ca_certificate:
        return
    if not plugin.tls:
        raise InvalidPluginError("plugin.ca_certificate", "set `tls` as well")
    if "-----BEGIN CERTIFICATE-----" not in plugin.ca_certificate:
        raise InvalidPluginError("plugin.ca_certificate", "is not a PEM certificate")


def choose_provider(name: str, wanted: str, served: Sequence[str]) -> str:
    """Return which provider of a plugin is meant; empty when that cannot be told."""
    if wanted:
        return wanted if wanted in served else ""
    if name in served:
        return name
    return served[0] if len(served) == 1 else ""
