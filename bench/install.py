"""What the harness needs beside the project's own virtual environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
DEBIAN_PACKAGES = {"nginx": "nginx-light", "wrk": "wrk"}
NODE_PACKAGES = {"node": "nodejs", "npm": "npm"}
SEARCH_PATH = os.pathsep.join(["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


def find_program(name: str) -> str | None:
    """Return the path of a program, also from the system folders that a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path=SEARCH_PATH)


def first_line(command: list[str]) -> str:
    """Return the first line a program prints, on whichever output."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout + found.stderr).strip().partition("\n")[0]


def require_programs(packages: dict[str, str] | None = None) -> dict[str, str]:
    """Return the paths of programs; install what is missing when root, otherwise say what to install."""
    packages = packages or DEBIAN_PACKAGES
    missing = [package for program, package in packages.items() if not find_program(program)]
    if missing:
        if os.geteuid() != 0 or not find_program("apt-get"):
            raise BenchError(
                f"please install {' and '.join(missing)}, for example: apt-get install {' '.join(missing)}"
            )
        print(f"installing {' '.join(missing)}", file=sys.stderr)
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *arguments], check=True, stdout=subprocess.DEVNULL)
    paths = {program: find_program(program) for program in packages}
    if absent := [program for program, path in paths.items() if path is None]:
        raise BenchError(f"{' and '.join(absent)} cannot be found although the packages are installed")
    return {program: path for program, path in paths.items() if path}


def unchanged(home: Path, fingerprint: str) -> bool:
    """Tell whether a folder was made from these requirements."""
    marker = home / "requirements.sha256"
    return marker.exists() and marker.read_text() == fingerprint


def python_home(name: str) -> Path:
    """Return a virtual environment of requirements-<name>.txt, made anew when that file changed."""
    requirements = HERE / f"requirements-{name}.txt"
    fingerprint = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    home = WORK / name
    if unchanged(home, fingerprint):
        return home
    print(f"installing {name} into {home} (a minute at most)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", str(requirements)], check=True)
    (home / "requirements.sha256").write_text(fingerprint)
    return home


def node_home(name: str) -> Path:
    """Return a folder with the packages of node-<name>/package-lock.json, made anew when that changed."""
    programs = require_programs(NODE_PACKAGES)
    source = HERE / f"node-{name}"
    fingerprint = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    home = WORK / name
    if unchanged(home, fingerprint):
        return home
    print(f"installing {name} into {home}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(source, home)
    # `ci` installs exactly the lock's versions and checks their integrity; no package runs a script.
    command = [programs["npm"], "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=home, check=True)
    (home / "requirements.sha256").write_text(fingerprint)
    return home


def version_in(home: str, package: str) -> str:
    """Return the version of a package, read from its own virtual environment."""
    folders = [str(folder) for folder in (WORK / home).glob("lib/python*/site-packages")]
    found = next(iter(importlib.metadata.distributions(name=package, path=folders)), None)
    return found.version if found else "not installed"


def version_of_node_package(home: str, package: str) -> str:
    """Return the version of a package of npm."""
    file = WORK / home / "node_modules" / package / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.exists() else "not installed"
