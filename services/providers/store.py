"""The tables of the providers service: the plugins that were registered while running."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from services.common.change_feed import ChangeFeed, changes_table
from services.common.db import Database
from services.providers.domain.plugin import Plugin

TOPIC = "plugin"
metadata = sa.MetaData()
plugin_table = sa.Table(
    "plugin",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("address", sa.String(260), nullable=False),
    sa.Column("remote_provider", sa.String(128), nullable=False),
    sa.Column("tls", sa.Boolean, nullable=False),
    sa.Column("ca_certificate", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)
changes = changes_table(metadata)


class PluginStore:
    """Reads and writes plugins; every change is in the feed."""

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed

    async def all(self) -> dict[str, Plugin]:
        """Return the plugins by name."""
        columns = [column for column in plugin_table.c if column.name != "created_at"]
        async with self._database.reading() as connection:
            rows = (await connection.execute(sa.select(*columns))).all()
        return {row.name: Plugin(**row._mapping) for row in rows}

    async def add(self, plugin: Plugin, now: datetime) -> bool:
        """Add a plugin. Tells whether the name was free."""
        row = {
            "name": plugin.name,
            "address": plugin.address,
            "remote_provider": plugin.remote_provider,
            "tls": plugin.tls,
            "ca_certificate": plugin.ca_certificate,
            "created_at": now,
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(sa.insert(plugin_table).values(row))
                await self._feed.append(connection, TOPIC, plugin.name)
        except IntegrityError:
            return False
        return True

    async def remove(self, name: str) -> bool:
        """Remove a plugin. Tells whether there was one."""
        async with self._database.transaction() as connection:
            gone = await connection.execute(sa.delete(plugin_table).where(plugin_table.c.name == name))
            if gone.rowcount:
                await self._feed.append(connection, TOPIC, name)
        return bool(gone.rowcount)
