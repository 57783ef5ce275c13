"""Consents, what was done with them, and the voices that were cloned under them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.common.v1.media_pb2 import MediaInput
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.db import Database
from services.common.ids import new_id
from services.common.outbox import Outbox
from services.workflow.domain.states import FINAL
from services.workflow.domain.voices import KEPT, REMOVED, REMOVING
from services.workflow.material_tables import consent, consent_event, voice
from services.workflow.store.records import VOICE_QUEUE, storable
from services.workflow.tables import dead_letter, job

# Kinds of jobs that may use somebody's voice or face.
_CONCERNED = ("voice_clone", "speech", "training")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and in which request."""

    name: str
    request_id: str


_WORKER = Actor("worker", "")


class Consents:
    """Reads and writes them. Every change leaves an entry that is never changed."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite.insert if self._database.sqlite else postgresql.insert)(table)

    async def create(self, row: dict[str, Any], actor: Actor) -> Any:
        """Record a consent and return its row, or that of the one this idempotency key recorded."""
        statement = self._insert(consent).values(row).on_conflict_do_nothing().returning(*consent.c)
        async with self._database.transaction() as connection:
            created = (await connection.execute(statement)).one_or_none()
            if created is None:
                known = sa.select(consent).where(
                    consent.c.organisation_id == row["organisation_id"],
                    consent.c.idempotency_key == row["idempotency_key"],
                )
                return (await connection.execute(known)).one()
            await self._note(connection, created.id, "consent.recorded", actor, "", row["recorded_at"])
        return created

    async def find(self, consent_id: str) -> Any:
        """Return a consent's row, or None."""
        async with self._database.reading() as connection:
            query = sa.select(consent).where(consent.c.id == consent_id)
            return (await connection.execute(query)).one_or_none()

    async def page(self, organisation_id: str, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return consents, the newest first."""
        query = sa.select(consent).where(consent.c.organisation_id == organisation_id)
        if before is not None:
            place = sa.tuple_(consent.c.recorded_at, consent.c.id)
            query = query.where(place < sa.tuple_(*map(sa.literal, before)))
        query = query.order_by(consent.c.recorded_at.desc(), consent.c.id.desc()).limit(limit)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).all()

    async def revoke(self, consent_id: str, reason: str, actor: Actor, now: int) -> Any:
        """Take a consent back, once, and let what was cloned under it be removed; return its row."""
        standing = consent.c.id == consent_id, consent.c.revoked_at == 0
        update = sa.update(consent).where(*standing).values(revoked_at=now).returning(consent.c.id)
        cloned = voice.c.consent_id == consent_id, voice.c.state == KEPT
        removing = sa.update(voice).where(*cloned).values(state=REMOVING).returning(voice.c.id)
        async with self._database.transaction() as connection:
            if (await connection.execute(update)).one_or_none() is not None:
                await self._note(connection, consent_id, "consent.revoked", actor, reason, now)
                voices = (await connection.scalars(removing)).all()
                if voices:
                    messages = [(VOICE_QUEUE, voice_id, now) for voice_id in voices]
                    await self._outbox.append_all(connection, messages, now)
        return await self.find(consent_id)

    async def used(self, consent_id: str, detail: str, actor: Actor, now: int) -> None:
        """Note that a consent was relied on."""
        async with self._database.transaction() as connection:
            await self._note(connection, consent_id, "consent.used", actor, detail, now)

    async def _note(
        self, connection: AsyncConnection, consent_id: str, event: str, actor: Actor, detail: str, now: int
    ) -> None:
        entry = {
            "id": new_id("cev"),
            "consent_id": consent_id,
            "type": event,
            "actor": actor.name,
            "request_id": actor.request_id,
            "detail": detail,
            "at": now,
        }
        await connection.execute(sa.insert(consent_event), entry)

    async def events(self, consent_id: str) -> Sequence[Any]:
        """Return what was done with a consent, in order."""
        query = sa.select(consent_event).where(consent_event.c.consent_id == consent_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query.order_by(consent_event.c.at, consent_event.c.id))).all()

    async def relies_on(self, file_id: str) -> bool:
        """Tell whether a file is the evidence of a consent that has not been revoked."""
        query = sa.select(consent.c.id).where(
            consent.c.evidence_file_id == file_id, consent.c.revoked_at == 0
        )
        async with self._database.reading() as connection:
            return await connection.scalar(query.limit(1)) is not None

    async def concerned_jobs(self, row: Any) -> list[str]:
        """Return the jobs that have not ended and use a consent, or a voice cloned under it."""
        query = sa.select(job.c.id, job.c.input).where(
            job.c.organisation_id == row.organisation_id,
            job.c.kind.in_(_CONCERNED),
            job.c.state.not_in(sorted(FINAL)),
        )
        voices = sa.select(voice.c.id).where(voice.c.consent_id == row.id)
        async with self._database.reading() as connection:
            cloned = set((await connection.scalars(voices)).all())
            jobs = (await connection.execute(query)).all()
        return [each.id for each in jobs if _uses(MediaInput.FromString(each.input), row.id, cloned)]

    async def keep_resource(self, job_id: str, provider: str, resource: str, now: int) -> str:
        """Return the id of the voice that a job has cloned, the same one for the same voice.

        What other jobs have made, such as a trained model, is named as its provider names it.
        """
        async with self._database.reading() as connection:
            owner = (await connection.execute(sa.select(job).where(job.c.id == job_id))).one_or_none()
        if owner is None or owner.kind != "voice_clone":
            return resource
        return await self._keep_voice(owner, provider, resource, now)

    async def _keep_voice(self, owner: Any, provider: str, provider_voice: str, now: int) -> str:
        digest = hashlib.sha256(f"{owner.id}\n{provider}\n{provider_voice}".encode()).hexdigest()[:32]
        given = MediaInput.FromString(owner.input).voice_clone
        # Locked: a revocation at the same moment is seen here, or sees the voice there.
        holds = sa.select(consent.c.revoked_at).where(consent.c.id == given.consent_id).with_for_update()
        async with self._database.transaction() as connection:
            revoked = bool(await connection.scalar(holds))
            row = {
                "id": f"voice_{digest}",
                "organisation_id": owner.organisation_id,
                "consent_id": given.consent_id,
                "provider": provider,
                "provider_voice": provider_voice,
                "job_id": owner.id,
                "name": given.name,
                "created_at": now,
                "state": REMOVING if revoked else KEPT,
                "attempts": 0,
                "problem": "",
            }
            insert = self._insert(voice).values(row).on_conflict_do_nothing().returning(voice.c.id)
            new = await connection.scalar(insert)
            if revoked and new is not None:
                await self._outbox.append(connection, VOICE_QUEUE, new, now)
        return f"voice_{digest}"

    async def voices_of(self, consent_id: str) -> Sequence[Any]:
        """Return what was cloned under a consent, in order."""
        query = sa.select(voice).where(voice.c.consent_id == consent_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query.order_by(voice.c.created_at, voice.c.id))).all()

    async def removed(self, row: Any, now: int) -> None:
        """Note that a voice's provider has removed it."""
        async with self._database.transaction() as connection:
            if await self._asked(connection, row, REMOVED, ""):
                await self._note(connection, row.consent_id, "voice.removed", _WORKER, row.id, now)

    async def not_removed(self, row: Any, state: str, problem: str, again_at: int, now: int) -> None:
        """Note that a voice's provider has not removed it, and when it is asked again; 0 for never."""
        async with self._database.transaction() as connection:
            if not await self._asked(connection, row, state, problem):
                return  # The same message twice: the other one has written what follows.
            if again_at:
                await self._outbox.append(connection, VOICE_QUEUE, row.id, now, again_at)
                return
            letter = {
                "id": new_id("dead"),
                "queue": VOICE_QUEUE,
                "subject_id": row.id,
                "reason": storable(problem, 64),
                "at": now,
                "redriven_at": 0,
            }
            await connection.execute(sa.insert(dead_letter), letter)
            await self._note(
                connection, row.consent_id, "voice.left", _WORKER, storable(f"{row.id}: {problem}", 2000), now
            )

    async def _asked(self, connection: AsyncConnection, row: Any, state: str, problem: str) -> bool:
        """Write down what became of asking once. Tells whether nobody else has."""
        unchanged = voice.c.id == row.id, voice.c.attempts == row.attempts, voice.c.state == row.state
        values = {"state": state, "problem": storable(problem, 1000), "attempts": row.attempts + 1}
        update = sa.update(voice).where(*unchanged).values(values).returning(voice.c.id)
        return await connection.scalar(update) is not None

    async def voice(self, voice_id: str) -> Any:
        """Return a cloned voice's row, or None."""
        async with self._database.reading() as connection:
            return (await connection.execute(sa.select(voice).where(voice.c.id == voice_id))).one_or_none()

    async def voice_known_as(self, provider_voice: str) -> Any:
        """Return a cloned voice by its provider's name for it, or None."""
        query = sa.select(voice).where(voice.c.provider_voice == provider_voice).limit(1)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).one_or_none()


def _uses(given: MediaInput, consent_id: str, voices: set[str]) -> bool:
    match given.WhichOneof("kind"):
        case "voice_clone":
            return given.voice_clone.consent_id == consent_id
        case "training":
            return given.training.consent_id == consent_id
        case _:
            return given.speech.voice in voices
