"""A private RabbitMQ: on free ports, in a folder of its own, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.ports import free_port

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_LIMIT_S = 180
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
URL_VARIABLE = "OMNIHUB_TEST_AMQP_URL"
HOW_TO_GET_IT = (
    "RabbitMQ is needed: install it (Debian: `apt-get install rabbitmq-server`), or name a running server in "
    f"{URL_VARIABLE}=amqp://user:password@127.0.0.1:5672/ for the tests that do not kill it"
)


class Broker:
    """A running broker that can be killed and started again with what it has kept."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        """`settings` are further ones for the Erlang emulator."""
        self.port = free_port()
        self._folder = folder
        self._epmd_port = free_port()
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        # The kernel ends them with the thread that has started them: this one lives as long as they may.
        self._starter = ThreadPoolExecutor(1)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "loopback_users.guest = true\n"
            "log.console = true\nlog.file = false\n"
            # A laptop with a full disk still runs the tests.
            "disk_free_limit.absolute = 50MB\n"
        )
        (folder / "enabled_plugins").write_text("[].\n")
        home = folder / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text("OMNIHUBTESTS")
        cookie.chmod(0o400)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            # Else a broker that cannot start leaves it in the folder the tests run in.
            "ERL_CRASH_DUMP": str(home / "erl_crash.dump"),
            # The script becomes the broker. Else it waits for one, which lives on when the script is killed.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"omnihub{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{LOOPBACK} {settings}",
        }

    @property
    def log(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Return the process that leads all of it."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return once clients are served."""
        if self._epmd is None:
            # The port mapper that a broker starts for itself would outlive it.
            self._epmd = self._run("epmd", "-port", str(self._epmd_port))
            self._wait(self._epmd_answers)
        self._process = self._run(str(SERVER))
        self._wait(self._serves)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        if (guard := shutil.which("setpriv")) is not None:
            # When this process is killed, so are they.
            command = (guard, "--pdeathsig", "KILL", *command)
        with self._log.open("ab") as log:
            return self._starter.submit(
                subprocess.Popen,
                command,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            ).result()

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not ready():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"RabbitMQ does not start; its log ends with:\n{self.log[-2000:]}")
            time.sleep(0.05)

    def _epmd_answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._epmd_port), 5):
            return True
        return False

    def _serves(self) -> bool:
        """Tell whether it answers the greeting. Its own tool to ask takes a second of processor time."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            # The first frame: a method, of the channel 0.
            return connection.recv(3) == b"\x01\x00\x00"
        return False

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End it, and its port mapper."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        self._starter.shutdown()


@contextmanager
def private_broker(folder: Path, settings: str = "") -> Iterator[Broker]:
    """Run a private broker for the length of the context. Without one the test fails: it is never skipped."""
    if not SERVER.exists():
        pytest.fail(HOW_TO_GET_IT, pytrace=False)
    broker = Broker(folder, settings)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@contextmanager
def broker_url(folder: Path) -> Iterator[str]:
    """Yield the URL of a broker that is not killed: the named one, or a private one."""
    if existing := os.environ.get(URL_VARIABLE):
        yield existing
        return
    with private_broker(folder) as broker:
        yield broker.url
