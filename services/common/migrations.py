"""Alembic, for the few starts that have something to migrate."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory


def upgrade(engine: sqlalchemy.Engine, schema: str, scripts: Path) -> None:
    """Bring a service's schema to the newest revision in `scripts`, one process at a time."""
    sqlite = engine.dialect.name == "sqlite"
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory(str(scripts), version_locations=[str(scripts)])
    with engine.connect() as connection:
        if sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"omnihub.{schema}",))
            connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
            connection.exec_driver_sql(f'SET LOCAL search_path TO "{schema}"')
        with EnvironmentContext(
            config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)
        ) as environment:
            environment.configure(
                connection=connection,
                version_table_schema=None if sqlite else schema,
                render_as_batch=sqlite,
            )
            environment.run_migrations()
        connection.commit()
