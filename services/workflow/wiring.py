"""The wiring of files, consents and webhooks: what app.py puts between jobs and the world."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.consent_service_api import ConsentService
from omnihub.workflow.v1.file_service_api import FileService
from omnihub.workflow.v1.webhook_service_api import WebhookService

from services.common.db import Database
from services.common.foreign import ForeignClient
from services.common.outbox import SECOND, Outbox
from services.common.rpc import Call, RpcError
from services.common.service import Infrastructure
from services.workflow.consent_server import Cancel, ConsentServer
from services.workflow.files.links import Links
from services.workflow.files.outputs import Outputs
from services.workflow.files.provenance import Provenance, development_certificate, read_certificate
from services.workflow.files.server import FileServer
from services.workflow.files.store import FileStore, open_contents
from services.workflow.files.sweeper import Sweeper
from services.workflow.files.uploads import Uploads
from services.workflow.materials import Inputs, Materials, Permission
from services.workflow.notifier import Notifier
from services.workflow.remixes import Remixes
from services.workflow.settings import WorkflowSettings
from services.workflow.store.consents import Consents
from services.workflow.store.duties import Duties
from services.workflow.store.jobs import Jobs
from services.workflow.store.secrets import Vault
from services.workflow.store.webhooks import Webhooks
from services.workflow.voices import VoiceRemover
from services.workflow.webhook_server import WebhookServer

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What jobs need of files, consents and webhooks, and what is served of them."""

    files: FileStore
    uploads: Uploads
    links: Links
    inputs: Inputs
    materials: Materials
    outputs: Outputs
    notifier: Notifier
    webhooks: WebhookServer
    file_server: FileServer
    consents: Consents
    voices: VoiceRemover
    sweeper: Sweeper
    foreign: ForeignClient
    provenance: Provenance
    vault: Vault
    settings: WorkflowSettings
    clock: Clock

    async def start(self) -> None:
        """Read or make the shared secrets, and begin. The tables exist. Raises ValueError, StartupError."""
        now = round(self.clock().timestamp() * SECOND)
        self.links.open(await self.vault.signing_secret("file-links", lambda: secrets.token_bytes(32), now))
        if self.settings.provenance:
            self.provenance.open(*await self._certificate(now))
        await self.foreign.start()
        self.sweeper.start()

    async def _certificate(self, now: int) -> tuple[bytes, bytes]:
        chain_file, key_file = self.settings.provenance_certificate_file, self.settings.provenance_key_file
        if chain_file is not None and key_file is not None:
            return read_certificate(chain_file, key_file)
        made = await self.vault.shared("provenance", development_certificate, now)
        chain, _, key = made.partition(b"\0")
        return chain, key

    async def stop(self) -> None:
        """End."""
        await self.sweeper.stop()
        await self.foreign.stop()
        self.provenance.close()

    async def remove_outputs(self, file_ids: list[str]) -> None:
        """Remove what a job has made."""
        await self.files.remove(file_ids, round(self.clock().timestamp() * SECOND))

    async def check_endpoint(self, endpoint_id: str, call: Call) -> None:
        """Raise RpcError INVALID_ARGUMENT unless an address belongs to the caller's organisation."""
        try:
            await self.webhooks.endpoint(endpoint_id, call)
        except RpcError as error:
            raise RpcError("INVALID_ARGUMENT", f"webhook_endpoint_id: {error.message}") from None

    def interfaces(self, cancel: Cancel, wake: Callable[[], None]) -> list[tuple[Any, Any]]:
        """Return what is served. `cancel` stops a job."""
        consents = ConsentServer(self.consents, self.files, self.inputs.permission, cancel, wake, self.clock)
        return [
            (FileService, self.file_server),
            (ConsentService, consents),
            (WebhookService, self.webhooks),
        ]


def build_parts(
    settings: WorkflowSettings,
    infrastructure: Infrastructure,
    database: Database,
    outbox: Outbox,
    jobs: Jobs,
    router: MediaRouterService,
    *,
    public_url: str,
    storage_url: str,
    master_key: str,
    clock: Clock,
) -> Parts:
    """Build them. Raises ValueError for settings that cannot be used."""
    files = FileStore(database, open_contents(storage_url, infrastructure.data_dir / "files"))
    uploads = Uploads(files, settings.largest_upload_bytes, settings.upload_days, clock)
    foreign = ForeignClient(settings.allow_private_urls, settings.private_hosts)
    links = Links(public_url, lambda: clock().timestamp(), settings.link_ttl_s)
    consents, vault, provenance = Consents(database, outbox), Vault(database, master_key), Provenance()
    permission = Permission(consents, clock)
    webhooks = Webhooks(database, outbox)
    notifier = Notifier(webhooks, jobs, vault, foreign, links.to, clock)
    remixes = Remixes(jobs)
    materials = Materials(router, files, permission, remixes)
    return Parts(
        files=files,
        uploads=uploads,
        links=links,
        inputs=Inputs(files, uploads, foreign, permission, remixes, settings.largest_input_bytes),
        materials=materials,
        outputs=Outputs(
            files, router, foreign.download, consents.keep_resource, provenance, settings.output_days, clock
        ),
        notifier=notifier,
        webhooks=WebhookServer(webhooks, notifier, vault, foreign, clock),
        file_server=FileServer(files, uploads, consents, provenance, links.to, clock),
        consents=consents,
        voices=VoiceRemover(consents, router, clock),
        sweeper=Sweeper(files, Duties(database, infrastructure.instance_id), clock),
        foreign=foreign,
        provenance=provenance,
        vault=vault,
        settings=settings,
        clock=clock,
    )
