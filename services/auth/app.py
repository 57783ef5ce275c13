"""The only wiring of the auth service."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.auth.v1.signing_key_service_api import SigningKeyService
from omnihub.auth.v1.workspace_service_api import WorkspaceService
from pydantic import SecretStr

from services.auth import tables
from services.auth.accounts import Accounts
from services.auth.credentials import Credentials, check_welcome
from services.auth.domain.key import SECRET_PREFIX, is_usable_secret
from services.auth.keys import Bootstrap, Keys
from services.auth.passwords import Passwords
from services.auth.place_server import PlaceServer
from services.auth.places import Places
from services.auth.server import AuthServer
from services.auth.settings import AuthSettings
from services.auth.signing import Signer
from services.auth.signing_key_server import SigningKeyServer
from services.auth.store import Store
from services.common import clock
from services.common.change_feed import ChangeFeed
from services.common.service import Infrastructure, Service, StartupError

NAME = "auth"
MIGRATIONS = Path(__file__).parent / "migrations"
BOOTSTRAP_FILE = "bootstrap-key"
# Shorter secrets than generated ones are accepted, but said to be weak.
WEAK_SECRET_LENGTH = 32

_logger = logging.getLogger(__name__)


def build(
    settings: AuthSettings,
    infrastructure: Infrastructure,
    *,
    bootstrap_api_key: SecretStr | None = None,
    master_key: SecretStr | None = None,
    now: Callable[[], datetime] = clock.now,
) -> Service:
    """Build the service. Raises StartupError when `bootstrap_api_key` cannot be a key."""
    database = infrastructure.database(NAME)
    feed = ChangeFeed(database, tables.changes)
    store = Store(database, feed)
    signer = Signer(store, _reveal(master_key), settings.signing_key_publish_s, now)
    passwords = Passwords(
        threads=settings.password_threads,
        memory_kib=settings.password_memory_kib,
        passes=settings.password_passes,
    )
    bootstrap = Bootstrap(
        store, infrastructure.data_dir / BOOTSTRAP_FILE, _check_bootstrap(_reveal(bootstrap_api_key)), now
    )
    server = AuthServer(
        accounts=Accounts(store, passwords, settings, now),
        keys=Keys(store, now),
        credentials=Credentials(store, signer, settings.oidc, now),
        signer=signer,
        store=store,
        feed=feed,
        access_token_lifetime_s=settings.access_token_lifetime_s,
    )

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await signer.start()
        await bootstrap.start()
        async with store.reading() as records:
            if not await check_welcome(records, settings.oidc):
                raise StartupError(
                    "auth.oidc.organisation_id names no organisation: take an id of "
                    "GET /api/auth/organisations, or leave it empty to refuse unknown people"
                )

    async def stop() -> None:
        passwords.close()
        await database.close()

    return Service(
        name=NAME,
        interfaces=[
            (AuthService, server),
            (SigningKeyService, SigningKeyServer(signer)),
            (WorkspaceService, PlaceServer(Places(store, now))),
        ],
        start=start,
        stop=stop,
        check=database.ping,
        announce=bootstrap.announcements,
    )


def _reveal(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


def _check_bootstrap(secret: str) -> str:
    if secret and not is_usable_secret(secret):
        raise StartupError(
            f"OMNIHUB_BOOTSTRAP_API_KEY must start with {SECRET_PREFIX} and go on with visible ASCII "
            "characters, at most 500; leave it out and a key is generated"
        )
    if secret and len(secret) < WEAK_SECRET_LENGTH:
        _logger.warning("bootstrap_api_key_is_weak: choose at least %d characters", WEAK_SECRET_LENGTH)
    return secret
