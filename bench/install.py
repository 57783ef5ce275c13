"""What the harness needs beside the project's own virtual environment."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
DEBIAN_PACKAGES = {"nginx": "nginx-light", "wrk": "wrk"}
SEARCH_PATH = os.pathsep.join(["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


def find_program(name: str) -> str | None:
    """Return the path of a program, also from the system folders that a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path=SEARCH_PATH)


def require_programs() -> dict[str, str]:
    """Return the paths of nginx and wrk; install what is missing when root, otherwise say what to install."""
    missing = [package for program, package in DEBIAN_PACKAGES.items() if not find_program(program)]
    if missing:
        if os.geteuid() != 0 or not find_program("apt-get"):
            raise BenchError(
                f"please install {' and '.join(missing)}, for example: apt-get install {' '.join(missing)}"
            )
        print(f"installing {' '.join(missing)}", file=sys.stderr)
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *arguments], check=True, stdout=subprocess.DEVNULL)
    paths = {program: find_program(program) for program in DEBIAN_PACKAGES}
    if absent := [program for program, path in paths.items() if path is None]:
        raise BenchError(f"{' and '.join(absent)} cannot be found although the packages are installed")
    return {program: path for program, path in paths.items() if path}


def require_litellm() -> Path:
    """Return the folder of LiteLLM's own virtual environment, made anew when its requirements changed."""
    requirements = HERE / "requirements-litellm.txt"
    fingerprint = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    home = WORK / "litellm"
    marker = home / "requirements.sha256"
    if marker.exists() and marker.read_text() == fingerprint:
        return home
    print(f"installing LiteLLM into {home} (about a minute)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", str(requirements)], check=True)
    marker.write_text(fingerprint)
    return home
