"""The commands beside those that serve: what they take, and which module does the work."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, Any

from services import jobs_command
from services.access import CommandError, platform_key, platform_url
from services.commands import FAILED
from services.commands import add_commands as add_questions
from services.common.late import late
from services.settings import Settings

if TYPE_CHECKING:
    from services.billing import command as billing
    from services.billing import plan_files
    from services.common import db
    from services.router.planning import evaluating, replaying
    from services.router.registry import command as models
else:
    # Those who ask a running platform wait for no database's library, and the others not for each other's.
    billing, plan_files = late("services.billing.command"), late("services.billing.plan_files")
    db, models = late("services.common.db"), late("services.router.registry.command")
    evaluating = late("services.router.planning.evaluating")
    replaying = late("services.router.planning.replaying")


def add_commands(commands: Any, named: str = "") -> None:
    """Add the commands `generate`, `jobs`, `billing`, `auth`, `usage`, `models` and `router`.

    Where a module declares its own options, it does so only for the command that was `named`.
    """
    jobs_command.add_commands(commands)
    ledger = commands.add_parser("billing", help="check the ledger and what was charged")
    actions = ledger.add_subparsers(required=True, metavar="action")
    summary = "derive every balance and counter anew, walk the hash chain, print what differs"
    actions.add_parser("check", help=summary).set_defaults(run=_check_ledger)
    add_questions(commands, actions)
    registry = commands.add_parser("models", help="show and import the models of the registry")
    if named == "models":
        models.add_arguments(registry)
    registry.set_defaults(run=_models)
    router = commands.add_parser("router", help="replay decisions, evaluate policies")
    if named == "router":
        _add_router(router.add_subparsers(required=True, metavar="action"))


def _add_router(router: Any) -> None:
    replay = router.add_parser("replay", help="decide stored decisions again; they must agree")
    replaying.add_arguments(replay)
    replay.set_defaults(run=_replay)
    evaluate = router.add_parser("evaluate", help="judge routing policies by their answers")
    evaluating.add_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _check_ledger(settings: Settings, _: argparse.Namespace) -> int:
    return billing.check(settings.data_dir, settings.database_url, plan_files.plan_book_of(settings.billing))


def _replay(settings: Settings, options: argparse.Namespace) -> int:
    file = None if settings.database_url else settings.data_dir / "router.db"
    return replaying.run(
        settings.database_url or db.sqlite_url(settings.data_dir / "router.db"), file, options
    )


def _evaluate(settings: Settings, options: argparse.Namespace) -> int:
    try:
        key = platform_key(settings, options.key_file)
    except CommandError as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return FAILED
    return evaluating.run(platform_url(settings, options.url), key, options)


def _models(settings: Settings, options: argparse.Namespace) -> int:
    database = db.Database(settings.database_url or db.sqlite_url(settings.data_dir / "router.db"), "router")
    return asyncio.run(models.run(database, settings.models, options))
