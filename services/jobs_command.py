"""`omnihub generate` and `omnihub jobs`: begin, follow and stop generations through the public REST API."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from services.access import CommandError, platform_key, platform_url
from services.common.late import late
from services.settings import Settings

if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = late("aiohttp")

ENDED = ("succeeded", "failed", "cancelled", "expired")
CONNECT_LIMIT_S = 5.0
BAR = 30
PAGE = 100
PIECE = 64 * 1024
# As often a watch that breaks off is begun again.
RENEWALS = 5
_EVENT = b"data:"
Json = dict[str, Any]


class Platform:
    """The public REST API of a running OmniHub."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, method: str, path: str, body: Json | None = None, **query: str | int) -> Json:
        """Return the answer to one call. Raises CommandError."""
        asked = {name: str(value) for name, value in query.items() if value}
        try:
            async with self._session.request(method, f"{self._url}{path}", json=body, params=asked) as answer:
                await _check(answer)
                found: Json = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from None

    async def watch(self, job: Json) -> AsyncIterator[Json]:
        """Yield a job after each change, the last time when it has ended. Raises CommandError."""
        left = RENEWALS
        while job["state"] not in ENDED or left == RENEWALS:
            path = f"{self._url}/api/generations/{job['jobId']}:watch"
            try:
                async with self._session.get(path) as answer:
                    await _check(answer)
                    async for line in answer.content:
                        if line.startswith(_EVENT):
                            event = json.loads(line[len(_EVENT) :])
                            job = event.get("end") or event.get("job") or job
                            yield job
                            if "end" in event:
                                return
            except (aiohttp.ClientError, TimeoutError) as error:
                if not left:
                    raise self._unreachable(error) from None
            left -= 1
            if left < 0:
                raise CommandError(f"the job {job['jobId']} goes on, but the watch keeps breaking off")
            await asyncio.sleep(1)

    async def download(self, url: str, to: Path) -> None:
        """Write what a signed link leads to into a file. Raises CommandError."""
        # The link is its own credential.
        try:
            async with self._session.get(url, headers={"Authorization": ""}) as answer:
                await _check(answer)
                with to.open("wb") as file:
                    async for piece in answer.content.iter_chunked(PIECE):
                        file.write(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommandError(
                f"{url.partition('?')[0]} cannot be fetched ({type(error).__name__});"
                " links begin with the OMNIHUB_PUBLIC_URL of the server"
            ) from None
        except OSError as error:
            raise CommandError(f"cannot write {to}: {error.strerror}") from None

    def _unreachable(self, error: Exception) -> CommandError:
        return CommandError(
            f"{self._url} does not answer ({type(error).__name__}); start it with `omnihub serve`,"
            " or set OMNIHUB_URL"
        )


async def _check(answer: aiohttp.ClientResponse) -> None:
    """Raise CommandError with the words of the platform unless the answer is good."""
    if answer.status < 400:
        return
    text = await answer.text()
    try:
        error = json.loads(text)["error"]
        message = f"{error.get('reason', answer.status)}: {error['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{answer.status}: {text[:200]}"
    raise CommandError(message)


@asynccontextmanager
async def _platform(settings: Settings) -> AsyncIterator[Platform]:
    headers = {"Authorization": f"Bearer {platform_key(settings)}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=True) as session:
        yield Platform(session, platform_url(settings))


class Display:
    """Shows how a job goes: one moving bar on a terminal, a line for each change elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._moves = out.isatty()
        self._last = ""

    def show(self, job: Json) -> None:
        """Show the job as it is now."""
        line = self._bar(job) if self._moves else self._line(job)
        if line != self._last:
            padding = " " * max(0, len(self._last) - len(line))
            self._out.write(f"\r{line}{padding}" if self._moves else f"{line}\n")
            self._out.flush()
            self._last = line

    def close(self) -> None:
        """Leave the bar's line."""
        if self._moves and self._last:
            self._out.write("\n")

    def _bar(self, job: Json) -> str:
        done = 1.0 if job["state"] == "succeeded" else job.get("progress", 0.0)
        filled = round(BAR * done)
        return f"{job['jobId']} [{'#' * filled}{'-' * (BAR - filled)}] {done:4.0%} {_state(job)}"

    def _line(self, job: Json) -> str:
        progress = f" {job['progress']:.0%}" if job.get("progress") and job["state"] not in ENDED else ""
        return f"{job['jobId']} {_state(job)}{progress}"


def _state(job: Json) -> str:
    words = [job["state"]]
    if job.get("queuePosition"):
        words.append(f"behind {job['queuePosition']} others")
    if job["state"] in ENDED:
        words.append(f"{job.get('cost') or '0'} credits")
    if message := job.get("error", {}).get("message"):
        words.append(message)
    return ", ".join(words)


async def _follow(platform: Platform, job: Json, out: str) -> int:
    """Show a job until it has ended, and save what it made. Return the exit status."""
    display = Display(sys.stdout)
    display.show(job)
    try:
        async for seen in platform.watch(job):
            job = seen
            display.show(job)
    finally:
        display.close()
    if job["state"] != "succeeded":
        return 1
    for number, output in enumerate(job.get("outputs", [])):
        if text := output.get("text"):
            sys.stdout.write(f"{text}\n")
        if url := output.get("url"):
            where = _numbered(Path(out), number) if out else None
            if where is not None:
                await platform.download(url, where)
            sys.stdout.write(f"{where or url}\n")
    return 0


def _numbered(path: Path, number: int) -> Path:
    """Return the place of one of several outputs: boat.png, boat-2.png."""
    return path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}")


async def _generate(platform: Platform, options: argparse.Namespace) -> int:
    body = {"model": options.model, "input": {options.kind: _input(options)}}
    answer = await platform.ask("POST", "/api/generate", body)
    return await _follow(platform, answer["job"], options.out)


def _input(options: argparse.Namespace) -> Json:
    """Return what is to be made. Raises CommandError."""
    if options.kind == "speech":
        wanted = {"text": options.prompt, "voice": options.voice, "format": options.format}
    else:
        wanted = {"prompt": options.prompt, **_size(options.size)}
        if options.kind == "image":
            wanted |= {"count": options.count, "format": options.format}
        else:
            wanted |= {"durationS": options.seconds}
    return {name: value for name, value in wanted.items() if value}


def _size(text: str) -> Json:
    width, times, height = text.partition("x")
    if not text:
        return {}
    if not (times and width.isdigit() and height.isdigit()):
        raise CommandError(f"--size {text}: expected WIDTHxHEIGHT in pixels, such as 512x512")
    return {"width": int(width), "height": int(height)}


async def _jobs(platform: Platform, options: argparse.Namespace) -> int:
    if options.action == "list":
        query = {"kind": options.kind, "state": options.state, "pageSize": options.limit}
        answer = await platform.ask("GET", "/api/generations", **query)
        for job in answer.get("jobs", []):
            made = job.get("modelUsed") or job.get("model", "")
            sys.stdout.write(f"{job['jobId']}  {job['kind']:<14} {made:<24} {_state(job)}\n")
        return 0
    path = f"/api/generations/{options.job_id}"
    if options.action == "cancel":
        answer = await platform.ask("POST", f"{path}:cancel", {})
        sys.stdout.write(f"{answer['job']['jobId']} {_state(answer['job'])}\n")
        return 0
    answer = await platform.ask("GET", path)
    if options.action == "watch":
        return await _follow(platform, answer["job"], options.out)
    sys.stdout.write(json.dumps(answer["job"], indent=2, ensure_ascii=False) + "\n")
    return 0


async def _dead_letters(platform: Platform, options: argparse.Namespace) -> int:
    token, found = "", False
    while True:
        page = await platform.ask("GET", "/api/admin/dead-letters", pageToken=token)
        for letter in page.get("deadLetters", []):
            found = True
            again = "sent again" if letter.get("redriven") else ""
            words = (letter["deadLetterId"], letter["at"], letter["queue"], letter["subjectId"])
            sys.stdout.write("  ".join([*words, letter["reason"], again]).rstrip() + "\n")
        token = page.get("nextPageToken", "")
        if not token:
            break
    if not found:
        sys.stdout.write("no dead letters\n")
    return 0


async def _redrive(platform: Platform, options: argparse.Namespace) -> int:
    for dead_letter_id in options.dead_letter_id:
        answer = await platform.ask("POST", f"/api/admin/dead-letters/{dead_letter_id}:redrive", {})
        following = answer.get("jobId", "")
        sys.stdout.write(f"{dead_letter_id} sent again{f' as {following}' if following else ''}\n")
    return 0


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run one command. Return its exit status: 1 when the job did not succeed, 2 when it cannot be asked."""

    async def command() -> int:
        async with _platform(settings) as platform:
            work: int = await options.work(platform, options)
            return work

    try:
        return asyncio.run(command())
    except CommandError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nno longer watched; the job goes on: `omnihub jobs list`\n")
        return 130


def add_commands(commands: Any) -> None:
    """Add `generate` and `jobs` to the command line."""
    generate = commands.add_parser("generate", help="make an image, a video or speech, and wait for it")
    generate.add_argument("kind", choices=["image", "video", "speech"])
    generate.add_argument("prompt", help="what to make, or the text to speak")
    settings: Mapping[str, str] = {
        "--model": "such as local/default; otherwise the first that makes this",
        "--out": "file to write the result to",
        "--size": "of an image or a video, such as 512x512",
        "--format": "such as png, jpeg, mp3 or wav",
        "--voice": "of speech",
    }
    for name, text in settings.items():
        generate.add_argument(name, default="", help=text)
    generate.add_argument("--count", type=int, default=0, help="images")
    generate.add_argument("--seconds", type=float, default=0, help="length of a video")
    generate.set_defaults(run=run, work=_generate)
    jobs = commands.add_parser("jobs", help="list, look at, follow or cancel generations")
    actions = jobs.add_subparsers(required=True, metavar="action", dest="action")
    listing = actions.add_parser("list", help="the newest first")
    listing.add_argument("--kind", default="", help="such as image")
    listing.add_argument("--state", default="", help="such as running")
    listing.add_argument("--limit", type=int, default=PAGE, help="jobs at most")
    listing.set_defaults(run=run, work=_jobs)
    for name, text in (("get", "as JSON"), ("watch", "until it has ended"), ("cancel", "ask it to stop")):
        action = actions.add_parser(name, help=text)
        action.add_argument("job_id")
        action.set_defaults(run=run, work=_jobs)
        if name == "watch":
            action.add_argument("--out", default="", help="file to write the result to")
    letters = actions.add_parser("dead-letters", help="messages that could not be worked off")
    letters.set_defaults(run=run, work=_dead_letters)
    redrive = actions.add_parser("redrive", help="send dead letters again")
    redrive.add_argument("dead_letter_id", nargs="+", help="as `omnihub jobs dead-letters` shows it")
    redrive.set_defaults(run=run, work=_redrive)
