"""The wiring of the providers service."""

from __future__ import annotations

from collections.abc import Mapping

from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.service import Infrastructure, Service, StartupError
from services.providers.adapter import Adapter
from services.providers.adapters.known import LOCAL, complete
from services.providers.adapters.table import ADAPTERS
from services.providers.http import Upstream
from services.providers.server import ProviderServer
from services.providers.settings import ProviderSettings


def build(settings: Mapping[str, ProviderSettings], infrastructure: Infrastructure) -> Service:
    """Return the service for these providers and `local`. Raises StartupError for wrong settings."""
    upstream = Upstream()
    adapters: dict[str, Adapter] = {}
    for name, given in {LOCAL: ProviderSettings(), **settings}.items():
        try:
            completed = complete(name, given)
        except ValueError as error:
            raise StartupError(str(error)) from None
        make = ADAPTERS.get(completed.adapter)
        if make is None:
            known = ", ".join(sorted(ADAPTERS))
            raise StartupError(f"providers.{name}.adapter: {completed.adapter!r} is none of {known}")
        adapters[name] = make(name, completed, upstream)
    return Service(
        name="providers",
        interfaces=[(ProviderService, ProviderServer(adapters))],
        start=upstream.start,
        stop=upstream.stop,
        check=upstream.check,
    )
