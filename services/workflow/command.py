"""`omnihub jobs dead-letters` and `omnihub jobs redrive`: what an administrator does about lost messages."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import httpx

LIMIT_S = 30.0


def add_arguments(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands below `omnihub jobs`."""
    letters = jobs.add_parser("dead-letters", help="list messages that could not be worked off")
    letters.set_defaults(act=_dead_letters)
    redrive = jobs.add_parser("redrive", help="send dead letters again")
    redrive.add_argument("dead_letter_id", nargs="+", help="as `omnihub jobs dead-letters` shows it")
    redrive.set_defaults(act=_redrive)
    for command in (letters, redrive):
        command.add_argument("--url", default="", help="public address; this machine's by default")
        command.add_argument("--key", default="", help="an administrator's key; the first one by default")


def run(url: str, key: str, options: argparse.Namespace) -> int:
    """Run one of the commands against the platform at `url` and return the exit status."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=LIMIT_S, trust_env=False) as client:
        try:
            return int(options.act(client, options))
        except httpx.HTTPStatusError as error:
            sys.stderr.write(f"{_problem(error.response)}\n")
        except httpx.HTTPError as error:
            sys.stderr.write(f"{url} does not answer: {error}; is it running, is --url right?\n")
    return 1


def _dead_letters(client: httpx.Client, options: argparse.Namespace) -> int:
    token, found = "", 0
    while True:
        page = _ask(client, "GET", "/api/admin/dead-letters", params={"pageToken": token} if token else {})
        for letter in page.get("deadLetters", ()):
            found += 1
            again = "sent again" if letter.get("redriven") else ""
            words = (letter["deadLetterId"], letter["at"], letter["queue"], letter["subjectId"])
            sys.stdout.write("  ".join([*words, letter["reason"], again]).rstrip() + "\n")
        token = page.get("nextPageToken", "")
        if not token:
            break
    if not found:
        sys.stdout.write("no dead letters\n")
    return 0


def _redrive(client: httpx.Client, options: argparse.Namespace) -> int:
    for dead_letter_id in options.dead_letter_id:
        answer = _ask(client, "POST", f"/api/admin/dead-letters/{dead_letter_id}:redrive", json={})
        following = answer.get("jobId", "")
        sys.stdout.write(f"{dead_letter_id} sent again{f' as {following}' if following else ''}\n")
    return 0


def _ask(client: httpx.Client, method: str, path: str, **content: Any) -> dict[str, Any]:
    answer = client.request(method, path, **content)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _problem(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['reason']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
