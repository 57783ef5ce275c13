"""The commands beside those that serve: what they take, and which module does the work."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from services import jobs_command
from services.billing import command as billing
from services.billing.plan_files import plan_book_of
from services.commands import add_commands as add_questions
from services.common.db import Database, sqlite_url
from services.router import command as models
from services.router import evaluating, replaying
from services.settings import Settings


def add_commands(commands: Any) -> None:
    """Add `generate`, `jobs`, `billing`, `usage`, `models` and `router` to the commands of the program."""
    jobs_command.add_commands(commands)
    ledger = commands.add_parser("billing", help="check the ledger and what was charged")
    actions = ledger.add_subparsers(required=True, metavar="action")
    actions.add_parser("check", help=billing.HELP).set_defaults(run=_check_ledger)
    add_questions(commands, actions)
    registry = commands.add_parser("models", help="show and import the models of the registry")
    models.add_arguments(registry)
    registry.set_defaults(run=_models)
    router = commands.add_parser("router", help="replay decisions, evaluate policies").add_subparsers(
        required=True, metavar="action"
    )
    replay = router.add_parser("replay", help="decide stored decisions again; they must agree")
    replaying.add_arguments(replay)
    replay.set_defaults(run=_replay)
    evaluate = router.add_parser("evaluate", help="judge routing policies by their answers")
    evaluating.add_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _check_ledger(settings: Settings, _: argparse.Namespace) -> int:
    return billing.check(settings.data_dir, settings.database_url, plan_book_of(settings.billing))


def _replay(settings: Settings, options: argparse.Namespace) -> int:
    file = None if settings.database_url else settings.data_dir / "router.db"
    return replaying.run(settings.database_url or sqlite_url(settings.data_dir / "router.db"), file, options)


def _evaluate(settings: Settings, options: argparse.Namespace) -> int:
    scheme = "https" if settings.edge.certificate_file else "http"
    key_file = settings.data_dir / "bootstrap-key"
    return evaluating.run(f"{scheme}://127.0.0.1:{settings.port}", key_file, options)


def _models(settings: Settings, options: argparse.Namespace) -> int:
    database = Database(settings.database_url or sqlite_url(settings.data_dir / "router.db"), "router")
    return asyncio.run(models.run(database, settings.models, options))
