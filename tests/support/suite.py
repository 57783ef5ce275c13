"""The suite as its users run it: real processes, real Envoy, on free ports, in one process or in many."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import httpx

from services.__main__ import main
from tests.support.forks import PYTHONPATH, Forked
from tests.support.ports import free_port

KEY = "omni_sk_test_0123456789abcdefghijklmnopqrstuvwxyz"
START_TIMEOUT_S = 150
STOP_TIMEOUT_S = 90
# What runs alone when the suite is split, in the order of needs.
SPLIT = ("auth", "billing", "providers", "router", "agents", "workflow", "worker", "gateway", "edge")
# The router in a process of its own, and all others in one.
APART = ",".join(name for name in SPLIT if name != "router")
APART_NEEDS = ("auth", "billing", "providers", "agents", "workflow")

# Listeners of HTTP that the edge leads to, and the targets that have them.
HTTP_PEERS = (("facade", "gateway"), ("files", "workflow"))


class Suite:
    """A running OmniHub. `targets` says which process serves what."""

    def __init__(
        self,
        folder: Path,
        config: str = "",
        environment: Mapping[str, str] | None = None,
        targets: Sequence[str] = ("all",),
        *,
        fresh: bool = False,
    ) -> None:
        """`fresh`: each process begins with an empty interpreter, as the command does, and takes longer."""
        self.folder = folder
        self._fresh = fresh
        self.key = KEY
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self._targets = targets
        self._grpc = {target: free_port() for target in targets}
        self._http = {target: free_port() for target in targets}
        config_file = folder / "omnihub.toml"
        config_file.write_text(config)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("OMNIHUB_") and not name.endswith("_API_KEY")
        }
        self._environment = {
            **inherited,
            "PYTHONPATH": PYTHONPATH,
            "PYTHONWARNINGS": "default",
            "OMNIHUB_CONFIG": str(config_file),
            "OMNIHUB_DATA_DIR": str(folder / "data"),
            "OMNIHUB_BOOTSTRAP_API_KEY": KEY,
            "OMNIHUB_LOG__FORMAT": "json",
            "OMNIHUB_EDGE__LISTEN_HOST": "127.0.0.1",
            "PORT": str(self.port),
            **(environment or {}),
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find the same settings."""
        return dict(self._environment)

    @property
    def url(self) -> str:
        """The public address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def urls(self) -> list[str]:
        """The public address of each edge."""
        return [self.url]

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI clients."""
        return f"{self.url}/v1"

    def internal_url(self, target: str) -> str:
        """Return the internal HTTP listener of a process."""
        return f"http://127.0.0.1:{self._http[target]}"

    def grpc_address(self, target: str) -> str:
        """Return the internal gRPC listener of a process."""
        return f"127.0.0.1:{self._grpc[target]}"

    def log(self, target: str) -> str:
        """Return what a process has written so far."""
        return (self.folder / f"{target}.log").read_text()

    def _environment_of(self, target: str) -> dict[str, str]:
        environment = {
            **self._environment,
            "OMNIHUB_GRPC_LISTEN": f"127.0.0.1:{self._grpc[target]}",
            "OMNIHUB_HTTP_LISTEN": f"127.0.0.1:{self._http[target]}",
        }
        peers = self._peers_of(target).items()
        return environment | {f"OMNIHUB_PEERS__{peer.upper()}": address for peer, address in peers}

    def _peers_of(self, target: str) -> dict[str, str]:
        """Return where a process finds the others."""
        if len(self._targets) == 1:
            return {}
        if APART in self._targets:
            other = next(each for each in self._targets if each != target)
            called = ("router",) if target != "router" else APART_NEEDS
            return dict.fromkeys(called, self.grpc_address(other))
        others = [peer for peer in self._targets if peer not in (target, "edge", "gateway", "worker")]
        http = {name: f"127.0.0.1:{self._http[at]}" for name, at in HTTP_PEERS if at in self._http}
        return {peer: self.grpc_address(peer) for peer in others} | http

    def start(self) -> None:
        """Start every process and wait until requests are answered."""
        for target in self._targets:
            self.start_process(target)
        self.wait_until_ready()

    def start_process(self, target: str) -> None:
        """Start one process."""
        arguments = ["serve", f"--target={target.partition('#')[0]}"]
        environment, log = self._environment_of(target), self.folder / f"{target}.log"
        if not self._fresh:
            self.processes[target] = Forked(arguments, self.folder, environment, log)
            return
        with log.open("ab") as output:
            self.processes[target] = subprocess.Popen(
                [sys.executable, "-m", "services", *arguments],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, *arguments: str) -> str:
        """Run a command beside what runs, with the same settings, and return what it prints."""
        target = "router" if "router" in self._targets else self._targets[0]
        done = self.run(*arguments, environment=self._environment_of(target))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_until_ready(self) -> None:
        """Return once every process says it is ready, also through the public port. Raises AssertionError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        problem = "no answer"
        pause = 0.05
        with httpx.Client() as client:
            while time.monotonic() < deadline:
                for target, process in self.processes.items():
                    assert process.poll() is None, f"{target} has ended:\n{self.log(target)[-4000:]}"
                problem = self._problem(client)
                if not problem:
                    return
                select_pause(pause)
        logs = "\n".join(f"--- {target}\n{self.log(target)[-2000:]}" for target in self._targets)
        raise AssertionError(f"not ready within {START_TIMEOUT_S} s: {problem}\n{logs}")

    def _problem(self, client: httpx.Client) -> str:
        """Return what is not ready yet."""
        for url in [*map(self.internal_url, self.processes), self.url]:
            try:
                answer = client.get(f"{url}/ready", timeout=3)
            except httpx.HTTPError as error:
                return f"{url}: {error!r}"
            if answer.status_code != 200:
                return f"{url}: {answer.text}"
        return ""

    def is_ready(self) -> bool:
        """Tell whether every process says so now."""
        with httpx.Client() as client:
            return not self._problem(client)

    def kill_process(self, target: str) -> None:
        """`kill -9` of one process and what it started."""
        process = self.processes.pop(target)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)

    def logs(self) -> str:
        """Return what all processes have written so far."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("*.log")))

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run another command of the program with the settings of this suite."""
        return subprocess.run(
            [sys.executable, "-m", "services", *arguments],
            cwd=self.folder,
            env={**self._environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )

    def ask(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Do what `run` does in this process: most of a command's time is the start of its process."""
        out, err = io.StringIO(), io.StringIO()
        surroundings = {**self._environment, **(environment or {})}
        with (
            mock.patch.dict(os.environ, surroundings, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(arguments)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    def kill(self) -> None:
        """`kill -9` of every process group at once, Envoy included."""
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait(STOP_TIMEOUT_S)
        self.processes.clear()

    def stop(self) -> dict[str, int]:
        """Stop in reverse order, as an operator would, and return the exit statuses."""
        statuses = {}
        for target, process in reversed(list(self.processes.items())):
            process.send_signal(signal.SIGTERM)
            try:
                statuses[target] = process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                statuses[target] = process.wait(STOP_TIMEOUT_S)
        self.processes.clear()
        return statuses


def select_pause(seconds: float) -> None:
    """Let other processes run before looking again: readiness of a process can only be polled."""
    import select

    select.select([], [], [], seconds)
