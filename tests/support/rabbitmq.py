"""A private RabbitMQ: on free ports, in a folder of its own, gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.postgresql import free_port

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CONTROL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
START_LIMIT_S = 90
URL_VARIABLE = "OMNIHUB_TEST_AMQP_URL"
HOW_TO_GET_IT = (
    "RabbitMQ is needed: install it (Debian: `apt-get install rabbitmq-server`), or name a running server in "
    f"{URL_VARIABLE}=amqp://user:password@127.0.0.1:5672/ for the tests that do not kill it"
)


class Broker:
    """A running broker that can be killed and started again with what it has kept."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._epmd_port = free_port()
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
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
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"omnihub{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    @property
    def pid(self) -> int:
        """Return the process that leads all of it."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return once clients are served."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(SERVER)],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._serving():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"RabbitMQ does not start; its log ends with:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _serving(self) -> bool:
        asked = subprocess.run(
            [str(CONTROL), "-q", "await_startup", "--timeout", "5"],
            env=self._environment,
            capture_output=True,
            check=False,
        )
        return asked.returncode == 0

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End it, and the port mapper it has started."""
        self.kill()
        subprocess.run(
            ["epmd", "-port", str(self._epmd_port), "-kill"],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )


@contextmanager
def private_broker(folder: Path) -> Iterator[Broker]:
    """Run a private broker for the length of the context. Without one the test fails: it is never skipped."""
    if not SERVER.exists():
        pytest.fail(HOW_TO_GET_IT, pytrace=False)
    broker = Broker(folder)
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
