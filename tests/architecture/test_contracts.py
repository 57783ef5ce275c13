"""Rules of the contracts that buf does not know. protos/README.md explains them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from omnihub.common.v1 import options_pb2

from services.common.rpc.errors import TABLE

ROOT = Path(__file__).resolve().parents[2]
IMAGE = FileDescriptorSet.FromString((ROOT / "gen" / "omnihub.binpb").read_bytes())
OURS = [file for file in IMAGE.file if file.package.startswith("omnihub.")]
SIXTY_FOUR_BITS = {
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_SINT64,
    FieldDescriptorProto.TYPE_FIXED64,
    FieldDescriptorProto.TYPE_SFIXED64,
}
# Their JSON form is not that of their fields.
WELL_KNOWN = "google.protobuf."
# Any valid credential may call these: they are about the caller alone.
ANY_CREDENTIAL = {"AuthService.AcceptInvitation", "AuthService.GetMe", "AuthService.ListOrganisations"}
# Field numbers inside the descriptors of files and services, as source locations name them.
SERVICE, METHOD = 6, 2


@dataclass(frozen=True)
class Rpc:
    """One rpc of ours with what a rule looks at."""

    name: str
    package: str
    request: str
    response: str
    streams: bool
    client_streams: bool
    options: Any
    comment: str

    @property
    def transcoded(self) -> bool:
        return bool(self.options[annotations_pb2.http].WhichOneof("pattern"))


def _rpcs() -> Iterator[Rpc]:
    for file in OURS:
        comments = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }
        for at, service in enumerate(file.service):
            for number, method in enumerate(service.method):
                yield Rpc(
                    f"{service.name}.{method.name}",
                    file.package,
                    method.input_type.lstrip("."),
                    method.output_type.lstrip("."),
                    method.server_streaming,
                    method.client_streaming,
                    method.options.Extensions,
                    comments.get((SERVICE, at, METHOD, number), ""),
                )


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    waiting = [(f"{file.package}.{message.name}", message) for message in file.message_type]
    while waiting:
        name, message = waiting.pop()
        yield name, message
        waiting += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]


MESSAGES = dict(pair for file in IMAGE.file for pair in _messages(file))
RPCS = list(_rpcs())
every_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


def reachable(name: str) -> dict[str, DescriptorProto]:
    """Return all messages inside a message, by name, itself included."""
    found: dict[str, DescriptorProto] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(WELL_KNOWN):
            continue
        found[name] = MESSAGES[name]
        waiting += [field.type_name.lstrip(".") for field in MESSAGES[name].field if is_message(field)]
    return found


def is_message(field: FieldDescriptorProto) -> bool:
    return field.type == FieldDescriptorProto.TYPE_MESSAGE


def test_there_are_rpcs() -> None:
    assert len(RPCS) > 30


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc.transcoded], ids=lambda rpc: rpc.name)
def test_transcoded_messages_have_no_64_bit_integers(rpc: Rpc) -> None:
    """Proto JSON writes them as strings, which no caller expects of a number."""
    wide = [
        f"{name}.{field.name}"
        for root in (rpc.request, rpc.response)
        for name, message in reachable(root).items()
        for field in message.field
        if field.type in SIXTY_FOUR_BITS
    ]
    assert not wide


@every_rpc
def test_an_rpc_says_what_it_does(rpc: Rpc) -> None:
    assert rpc.comment.strip().endswith((".", ")."))


@every_rpc
def test_reasons_that_a_comment_names_exist(rpc: Rpc) -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", rpc.comment))
    assert named <= set(TABLE)


@every_rpc
def test_the_transport_can_carry_it(rpc: Rpc) -> None:
    assert not rpc.client_streams


@every_rpc
def test_a_public_rpc_says_who_may_call_it(rpc: Rpc) -> None:
    public, anonymous, scope = (
        rpc.options[extension] for extension in (options_pb2.public, options_pb2.anonymous, options_pb2.scope)
    )
    if not public:
        assert not anonymous
        assert not scope
        assert not rpc.transcoded, "the edge routes public rpcs only"
    elif "alpha" not in rpc.package:
        assert anonymous != (bool(scope) or rpc.name in ANY_CREDENTIAL)


@pytest.mark.parametrize(
    "rpc",
    [rpc for rpc in RPCS if rpc.streams and rpc.options[options_pb2.public]],
    ids=lambda rpc: rpc.name,
)
def test_a_public_stream_says_how_it_ended(rpc: Rpc) -> None:
    message = MESSAGES[rpc.response]
    assert len(message.oneof_decl) == 1
    arms = sorted((field.number, field.name) for field in message.field if field.HasField("oneof_index"))
    assert len(arms) == len(message.field), "every field is an arm of the oneof"
    assert [name for _, name in arms][-2:] == ["end", "error"]


def _enums() -> Iterator[EnumDescriptorProto]:
    for file in OURS:
        yield from file.enum_type
        for _, message in _messages(file):
            yield from message.enum_type


@pytest.mark.parametrize("enum", list(_enums()), ids=lambda enum: enum.name)
def test_zero_means_unspecified(enum: EnumDescriptorProto) -> None:
    zero = next(value for value in enum.value if value.number == 0)
    assert zero.name == re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", enum.name).upper() + "_UNSPECIFIED"


# --- tools/check_breaking.py, on a repository of its own -----------------------------------------


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for part in ("protos", "tools"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*identity, "commit", "-qm", "first")):
        assert run(tmp_path, "git", *command).returncode == 0
    return tmp_path


def build(repository: Path) -> None:
    built = run(repository, sys.executable, "tools/build_protos.py")
    assert built.returncode == 0, built.stderr


def check(repository: Path, base: str = "main") -> subprocess.CompletedProcess[str]:
    return run(repository, sys.executable, "tools/check_breaking.py", base)


def remove_a_field(repository: Path) -> None:
    contract = repository / "protos" / "omnihub" / "router" / "v1" / "model.proto"
    text = contract.read_text()
    field = re.search(r"\n[^\n]* = \d+;", text)
    assert field is not None
    contract.write_text(text.replace(field.group(), "", 1))


def test_a_breaking_change_is_reported_and_refused_after_a_release(repository: Path) -> None:
    done = check(repository, "no-such-branch")
    assert done.returncode == 0, done.stderr
    assert "base branch no-such-branch: not found" in done.stdout
    assert "last release: not found" in done.stdout
    remove_a_field(repository)
    build(repository)
    reported = check(repository)
    assert reported.returncode == 0, reported.stderr
    assert "base branch main: breaking changes" in reported.stdout
    assert "model.proto" in reported.stdout
    assert run(repository, "git", "tag", "v0.1.0").returncode == 0
    refused = check(repository, "no-such-branch")
    assert refused.returncode == 1
    assert "break callers of the last release" in refused.stderr
