"""The wiring of the providers service."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.plugin_service_api import PluginService
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.change_feed import ChangeFeed
from services.common.service import Infrastructure, Service, StartupError
from services.providers.adapter import Adapter
from services.providers.adapters.known import LOCAL, PLUGIN, complete
from services.providers.adapters.plugin import PluginAdapter
from services.providers.adapters.table import ADAPTERS
from services.providers.domain.plugin import InvalidPluginError, Plugin, check_address
from services.providers.http import Upstream
from services.providers.media.adapter import MediaAdapter
from services.providers.media.server import MediaProviderServer
from services.providers.media.table import MEDIA_ADAPTERS
from services.providers.plugins import Plugins
from services.providers.server import PluginServer, ProviderServer
from services.providers.settings import ProviderSettings
from services.providers.store import PluginStore, changes

NAME = "providers"
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Mapping[str, ProviderSettings], infrastructure: Infrastructure) -> Service:
    """Return the service for these providers and `local`. Raises StartupError for wrong settings."""
    upstream = Upstream()
    adapters: dict[str, Adapter] = {}
    makers: dict[str, MediaAdapter] = {}
    for name, given in {LOCAL: ProviderSettings(), **settings}.items():
        try:
            completed = complete(name, given)
            make = MEDIA_ADAPTERS.get(completed.adapter)
            if make is not None:
                makers[name] = make(name, completed, upstream)
            if completed.adapter in ADAPTERS or make is None:
                adapters[name] = _adapter(name, completed, upstream)
        except ValueError as error:
            raise StartupError(str(error)) from None
    declared = [each for each in adapters.values() if isinstance(each, PluginAdapter)]
    database = infrastructure.database(NAME)
    feed = ChangeFeed(database, changes)
    plugins = Plugins(declared, frozenset(adapters), PluginStore(database, feed), feed)
    # A live view: what is registered while running is served with the next call.
    registered: MutableMapping[str, Adapter] = plugins.registered  # type: ignore[assignment]
    served = ChainMap[str, Adapter](adapters, registered)

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await upstream.start()
        await plugins.start()

    async def stop() -> None:
        await plugins.stop()
        await upstream.stop()
        await database.close()

    return Service(
        name=NAME,
        interfaces=[
            (ProviderService, ProviderServer(served)),
            (MediaProviderService, MediaProviderServer(makers)),
            (PluginService, PluginServer(plugins)),
        ],
        start=start,
        stop=stop,
        check=upstream.check,
    )


def _adapter(name: str, completed: ProviderSettings, upstream: Upstream) -> Adapter:
    """Make one adapter. Raises ValueError naming the setting that is wrong."""
    if completed.adapter == PLUGIN:
        return _plugin(name, completed)
    make = ADAPTERS.get(completed.adapter)
    if make is None:
        known = ", ".join(sorted({*ADAPTERS, *MEDIA_ADAPTERS, PLUGIN}))
        raise ValueError(f"providers.{name}.adapter: {completed.adapter!r} is none of {known}")
    return make(name, completed, upstream)


def _plugin(name: str, settings: ProviderSettings) -> PluginAdapter:
    try:
        check_address(settings.address, f"providers.{name}.address")
        certificate = settings.ca_file.read_text() if settings.ca_file is not None else ""
    except InvalidPluginError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"providers.{name}.ca_file: cannot be read: {error.strerror}") from None
    plugin = Plugin(name, settings.address, settings.remote_provider, settings.tls, certificate)
    return PluginAdapter(plugin, settings.timeouts)
