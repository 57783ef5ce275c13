"""A private PostgreSQL for the tests of one pytest process, started when the first test asks for it.

Each pytest-xdist worker has a server of its own: nothing to share means nothing to lock, and a
worker that dies takes its server with it.

    OMNIHUB_TEST_POSTGRESQL_URL     use this server instead; its user must be allowed to create databases
    OMNIHUB_TEST_POSTGRESQL_FSYNC   `on` makes the private server write through to the disk
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.support.ports import free_port

URL_VARIABLE = "OMNIHUB_TEST_POSTGRESQL_URL"
FSYNC_VARIABLE = "OMNIHUB_TEST_POSTGRESQL_FSYNC"
USER_WHEN_ROOT = "postgres"
# Ports from 32768 on are given to outgoing connections.
START_ATTEMPTS = 5
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30
HOW_TO_GET_IT = (
    "PostgreSQL is needed. Install it (Debian: `apt-get install postgresql`), or name a running server in "
    f"{URL_VARIABLE}=postgresql://user:password@127.0.0.1:5432/postgres"
)


class PostgresqlError(RuntimeError):
    """There is no PostgreSQL to test with; the message says what to do."""


def _version(folder: Path) -> int:
    digits = folder.parent.name.split(".")[0]
    return int(digits) if digits.isdigit() else 0


def find_binaries() -> Path:
    """Return the folder of initdb and postgres, the newest version first. Raises PostgresqlError."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    if (config := shutil.which("pg_config")) is not None:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(answer.stdout.strip()))
    if (server := shutil.which("postgres")) is not None:
        folders.append(Path(server).resolve().parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresqlError(HOW_TO_GET_IT)


def _owner() -> str | None:
    """Return the user to run as, when it must not be ours: PostgreSQL refuses root."""
    return USER_WHEN_ROOT if os.getuid() == 0 else None


def _initialise(binaries: Path, data: Path, password: str) -> None:
    secret = data.parent / "password"
    secret.write_text(password)
    if (owner := _owner()) is not None:
        shutil.chown(data.parent, owner)
        shutil.chown(secret, owner)
    command = [
        str(binaries / "initdb"),
        f"--pgdata={data}",
        "--username=omnihub",
        f"--pwfile={secret}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]
    done = subprocess.run(command, capture_output=True, text=True, user=owner, cwd=data.parent, check=False)
    if done.returncode:
        raise PostgresqlError(f"initdb failed: {done.stderr}")


def _start(
    binaries: Path, data: Path, port: int, log: Path, *, commits_last: bool = False
) -> subprocess.Popen[bytes]:
    fsync = os.environ.get(FSYNC_VARIABLE, "off")
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "32MB",
        "fsync": fsync,
        # Without it a killed server forgets its last commits.
        "synchronous_commit": "on" if commits_last else fsync,
        "full_page_writes": fsync,
        # DROP DATABASE waits for a session that was left while it authenticated.
        "authentication_timeout": "5s",
        "lc_messages": "C",
    }
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    if (guard := shutil.which("setpriv")) is not None:
        # When this process is killed, the server stops by itself.
        command = [guard, "--pdeathsig", "INT", *command]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=_owner(),
            cwd=data.parent,
            start_new_session=True,
        )


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the server answers. Returns False when it has ended instead."""
    for _ in range(START_TIMEOUT_S * 20):
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            return False
        return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    # What it has stored goes with it: nothing need be written first.
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """A running PostgreSQL. `url` names its maintenance database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def url_of(self, database: str) -> str:
        """Return the URL of one of its databases."""
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, yield its URL, drop it."""
        name = self.create()
        try:
            yield self.url_of(name)
        finally:
            self.drop(name)

    def create(self) -> str:
        """Make an empty database and return its name."""
        name = f"omnihub_test_{secrets.token_hex(8)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever uses it."""
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


class KillableServer:
    """A private PostgreSQL that a test kills and starts again with what it has kept."""

    def __init__(self) -> None:
        self._binaries = find_binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="omnihub-postgresql-"))
        self._data, self._log = self._folder / "data", self._folder / "log"
        password = secrets.token_hex(16)
        _initialise(self._binaries, self._data, password)
        self._port = free_port()
        self.url = f"postgresql://omnihub:{password}@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process that leads all of it."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return once it answers."""
        self._process = _start(self._binaries, self._data, self._port, self._log, commits_last=True)
        if not _answers(self._process, self.url):
            raise PostgresqlError(f"PostgreSQL does not start: {self._log.read_text()}")

    def kill(self) -> None:
        """End it at once, with all its sessions."""
        process, self._process = self._process, None
        if process is not None:
            # The server's own way to end without cleaning up; a plain kill would leave its shared memory.
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_TIMEOUT_S)

    def remove(self) -> None:
        """End it and forget what it has kept."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def running_server() -> Iterator[Server]:
    """Yield the server to test with and stop it, if it is ours. Raises PostgresqlError."""
    if existing := os.environ.get(URL_VARIABLE):
        yield Server(existing)
        return
    binaries = find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="omnihub-postgresql-"))
    try:
        password = secrets.token_hex(16)
        data, log = folder / "data", folder / "log"
        _initialise(binaries, data, password)
        for _ in range(START_ATTEMPTS):
            port = free_port()
            url = f"postgresql://omnihub:{password}@127.0.0.1:{port}/postgres"
            process = _start(binaries, data, port, log)
            try:
                # Another process may have taken the port in between: then the next one.
                if _answers(process, url):
                    yield Server(url)
                    return
            finally:
                _stop(process)
        raise PostgresqlError(f"PostgreSQL does not start: {log.read_text()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
