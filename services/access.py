"""Where commands find a running platform, and the key they use."""

from __future__ import annotations

import sys
from pathlib import Path

from services.settings import Settings

BOOTSTRAP_FILE = "bootstrap-key"


class CommandError(Exception):
    """The command cannot go on; the message says what to do."""


def platform_url(settings: Settings, named: str = "") -> str:
    """Return the public address: the one that is named, else `OMNIHUB_URL`, else this machine's."""
    scheme = "https" if settings.edge.certificate_file else "http"
    return (named or settings.url or f"{scheme}://127.0.0.1:{settings.port}").rstrip("/")


def platform_key(settings: Settings, file: str = "") -> str:
    """Return the key of a named file (`-`: standard input), else `OMNIHUB_API_KEY`, else the first key.

    Raises CommandError.
    """
    if file == "-":
        return sys.stdin.readline().strip()
    if not file:
        for given in (settings.api_key, settings.bootstrap_api_key):
            if given is not None:
                return given.get_secret_value()
    path = Path(file) if file else settings.data_dir / BOOTSTRAP_FILE
    try:
        return path.read_text().strip()
    except OSError as error:
        advice = "" if file else "; set OMNIHUB_API_KEY"
        raise CommandError(f"no key in {path} ({error.strerror}){advice}") from None
