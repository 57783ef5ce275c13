"""Programs for Node that tests use, pinned in a package-lock.json, installed once for all test processes."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

_SETUP = Path(__file__).parents[2] / ".setup"


def install(source: Path) -> Path:
    """Install what `source` pins into a folder of the project of the same name, and return that folder."""
    folder = _SETUP / source.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (source / "package-lock.json").read_bytes()
        done = folder / "installed"
        if not done.exists() or done.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(source / name, folder / name)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True, timeout=250)
            done.write_bytes(wanted)
    return folder
