"""Compare the contracts with earlier ones: `python tools/check_breaking.py main`.

Against the merge base with the given branch the changes are reported; against the last release (the
newest tag `v*`) they must be compatible, or this fails. `v1alpha1` packages may change (buf.yaml).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"
IMAGE = Path("gen") / "omnihub.binpb"


def git(*arguments: str) -> bytes | None:
    """Return what git prints, or None when it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def image_of(commit: str, folder: Path) -> Path | None:
    """Build the descriptor set of a commit, with the tools of that commit, or None without contracts."""
    archive = git("archive", commit, "protos", "tools")
    if archive is None:
        return None
    # Not `tarfile`: Debian 12's Python does not know its filters yet, and later ones ask for them.
    subprocess.run(["tar", "--extract", f"--directory={folder}"], input=archive, check=True)
    subprocess.run([sys.executable, "tools/build_protos.py"], cwd=folder, check=True)
    return folder / IMAGE


def breaking_changes(commit: str) -> str | None:
    """Return what breaks callers of `commit`, one line each, or None when there is nothing to compare."""
    with tempfile.TemporaryDirectory() as folder:
        before = image_of(commit, Path(folder))
        if before is None:
            return None
        command = [str(BUF), "breaking", str(ROOT / IMAGE), "--against", str(before)]
        done = subprocess.run(command, cwd=ROOT / "protos", capture_output=True, text=True, check=False)
    # 100 means that buf found changes; anything else but 0 is a failure of its own.
    if done.returncode not in (0, 100):
        raise SystemExit(f"buf breaking failed: {done.stderr}")
    return done.stdout


def compare(label: str, commit: bytes | None) -> bool:
    """Print how the contracts differ from a commit. Returns whether callers of it would break."""
    found = breaking_changes(commit.decode().strip()) if commit else None
    if found is None:
        print(f"{label}: {'has no contracts' if commit else 'not found'}; nothing to compare with")
        return False
    print(f"{label}: {'breaking changes' if found else 'compatible'}")
    print(found, end="")
    return bool(found)


def main() -> None:
    """Compare with the base branch and the last release."""
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    # A fresh clone knows other branches by their remote name only.
    ancestor = git("merge-base", "HEAD", base) or git("merge-base", "HEAD", f"origin/{base}")
    compare(f"base branch {base}", ancestor)
    release = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    if compare("last release", release):
        sys.exit("The contracts break callers of the last release; see protos/README.md")


if __name__ == "__main__":
    main()
