"""Unix sockets: how they are written as addresses, and where they can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# `unix:/run/omnihub/1.grpc`, as gRPC writes it.
UNIX = "unix:"
# The path of a Unix socket is limited to 107 bytes.
PATH_LIMIT = 100


def socket_folder(data_dir: Path, name: str, longest: str) -> Path:
    """Return a folder for sockets with names up to `longest`: in the data directory if that path will do.

    Only a folder outside the data directory is made already.
    """
    place = data_dir.absolute() / name
    # A comma would part the addresses of a list.
    if len(os.fsencode(place / longest)) <= PATH_LIMIT and "," not in str(place):
        return place
    return Path(tempfile.mkdtemp(prefix=f"omnihub-{name}-"))


def remove_folder(folder: Path, data_dir: Path) -> None:
    """Remove an empty folder of sockets that is outside the data directory."""
    if folder.parent != data_dir.absolute() and folder.exists():
        folder.rmdir()
