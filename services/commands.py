"""Commands that ask a running platform: they speak to its public port, as any other caller."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from services.access import CommandError, platform_key, platform_url
from services.settings import Settings

TIMEOUT_S = 300
CHUNK = 1 << 16
# Exit statuses: it worked, what was compared differs, it could not be done.
DONE, DIFFERENT, FAILED = 0, 1, 2


class Platform:
    """The public port, and a key for it."""

    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self._url = platform_url(settings, options.url)
        self._key = platform_key(settings, options.key_file)

    def open(self, path: str, body: Mapping[str, Any] | None = None) -> BinaryIO:
        """Send a request and return the answer's body. Raises CommandError."""
        headers = {"authorization": f"Bearer {self._key}"}
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, content, headers)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            raise CommandError(_message(error)) from None
        except (OSError, ValueError) as error:
            raise CommandError(
                f"{self._url} cannot be reached: {error}; start it with `omnihub serve`, or set OMNIHUB_URL"
            ) from None

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that answers a JSON body. Raises CommandError."""
        with self.open(path, body) as answer:
            return json.load(answer)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        told = json.load(error)["error"]
        return f"{told['reason']}: {told['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def add_commands(commands: Any, billing: Any) -> None:
    """Add `auth`, `usage export`, and to the actions of `billing` those called rerate and reconcile."""
    auth = commands.add_parser("auth", help="the keys that sign tokens").add_subparsers(
        required=True, metavar="action"
    )
    _add(auth.add_parser("signing-keys", help="list them, the newest first"), _signing_keys, period=False)
    rotate = auth.add_parser(
        "rotate-signing-key", help="publish a new one, which signs after auth.signing_key_publish_s"
    )
    rotate.add_argument(
        "--withdraw",
        action="store_true",
        help="one may be stolen: the new one signs at once, all others are void, every login ends",
    )
    _add(rotate, _rotate, period=False)
    usage = commands.add_parser("usage", help="usage of an organisation").add_subparsers(
        required=True, metavar="action"
    )
    export = usage.add_parser("export", help="write usage events as CSV or JSON lines")
    export.add_argument("--format", choices=["csv", "jsonl"], default="csv")
    export.add_argument("--organisation", default="", help="another one than the key's own")
    export.add_argument("--output", default="-", help="file to write; default: standard output")
    _add(export, _export, period=True)
    rerate = billing.add_parser("rerate", help="rate stored usage again; status 1 when a number differs")
    rerate.add_argument("--organisation", default="", help="only this one")
    _add(rerate, _rerate, period=True)
    reconcile = billing.add_parser(
        "reconcile", help="compare a provider's usage export with our cost; status 1 when they differ"
    )
    reconcile.add_argument("file", help="CSV file")
    reconcile.add_argument("--provider", required=True, help="the configured provider whose bill it is")
    reconcile.add_argument("--shape", default="", help="openai, anthropic, openrouter or generic")
    _add(reconcile, _reconcile, period=False)


def _add(
    parser: argparse.ArgumentParser, work: Callable[[Platform, argparse.Namespace], int], *, period: bool
) -> None:
    if period:
        parser.add_argument("--from", dest="start", default="", help="date or RFC 3339 time")
        parser.add_argument("--to", dest="end", default="", help="exclusive; default: now")
    parser.add_argument(
        "--url", default="", help="the public address; default: OMNIHUB_URL, else this machine's"
    )
    parser.add_argument(
        "--key-file",
        default="",
        help="file with an API key, `-`: standard input; default: OMNIHUB_API_KEY, else the bootstrap key",
    )

    def run(settings: Settings, options: argparse.Namespace) -> int:
        try:
            return work(Platform(settings, options), options)
        except CommandError as error:
            sys.stderr.write(f"{error}\n")
            return FAILED

    parser.set_defaults(run=run)


def _signing_keys(platform: Platform, _: argparse.Namespace) -> int:
    with platform.open("/api/admin/signing-keys") as answer:
        _show(json.load(answer))
    return DONE


def _rotate(platform: Platform, options: argparse.Namespace) -> int:
    _show(platform.post("/api/admin/signing-keys/rotate", {"withdraw": options.withdraw}))
    if options.withdraw:
        sys.stdout.write("all earlier keys are withdrawn: people log in again, API keys go on\n")
    return DONE


def _show(answer: Any) -> None:
    for key in answer["keys"]:
        when = {"next": f"signs at {key.get('signsAt')}", "retiring": f"until {key.get('retiresAt')}"}
        line = f"{key['keyId']}  {key['state']:<8}  made {key['createdAt']}  {when.get(key['state'], '')}"
        sys.stdout.write(line.rstrip() + "\n")


def _export(platform: Platform, options: argparse.Namespace) -> int:
    query = urllib.parse.urlencode(
        {
            "format": options.format,
            "from": options.start,
            "to": options.end,
            "organisation_id": options.organisation,
        }
    )
    with platform.open(f"/api/usage/export?{query}") as answer:
        if options.output == "-":
            _copy(answer, sys.stdout.buffer)
            return DONE
        try:
            with Path(options.output).open("wb") as file:
                _copy(answer, file)
        except OSError as error:
            raise CommandError(f"{options.output}: {error.strerror}") from None
    return DONE


def _copy(answer: BinaryIO, output: BinaryIO) -> None:
    try:
        while chunk := answer.read(CHUNK):
            output.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"the export was cut: {error!r}; what is written is not complete") from None


def _rerate(platform: Platform, options: argparse.Namespace) -> int:
    checked = reproduced = 0
    body = {"from": options.start, "to": options.end, "organisationId": options.organisation}
    while True:
        page = platform.post("/api/admin/reratings", body)
        checked += page["checked"]
        reproduced += page["reproduced"]
        for found in page["differences"]:
            sys.stdout.write(
                f"{found['eventId']} {found['model']}: stored {found['ours']}; "
                f"again {found['theirs'] or '-'}: {found['reason']}\n"
            )
        if not page["nextPageToken"]:
            break
        body["pageToken"] = page["nextPageToken"]
    sys.stdout.write(f"{checked} events rated again, {reproduced} reproduced\n")
    return DONE if checked == reproduced else DIFFERENT


def _reconcile(platform: Platform, options: argparse.Namespace) -> int:
    try:
        document = Path(options.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{options.file} cannot be read as text: {error}") from None
    body = {"provider": options.provider, "shape": options.shape, "document": document}
    answer = platform.post("/api/admin/reconciliations", body)
    for found in answer["differences"]:
        names = " ".join(found[name] for name in ("day", "model", "attemptId", "eventId") if found[name])
        sys.stdout.write(
            f"{names}: provider {found['theirs'] or '-'}, ours {found['ours'] or '-'}: {found['reason']}\n"
        )
    sys.stdout.write(
        f"{answer['compared']} models and days compared, {answer['agreed']} agree; "
        f"provider {answer['theirs']}, ours {answer['ours']}\n"
    )
    if answer["attempts"]:
        sys.stdout.write(
            f"{answer['attempts']} attempts named, {answer['attemptsOnly']} of them without a charge; "
            f"{answer['chargesOnly']} charges without an attempt, {answer['chargesUnnamed']} that name none\n"
        )
    return DIFFERENT if answer["differences"] else DONE
