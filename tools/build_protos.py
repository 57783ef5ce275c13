"""Generate everything that comes from the contracts: `python tools/build_protos.py`.

Writes into gen/ (not committed):
  omnihub/**, buf/validate/**   messages, type stubs, and one *_api.py for each service
  omnihub.binpb                 descriptor set for Envoy, reflection and buf

The descriptors of buf.validate and googleapis come from the protovalidate and
googleapis-common-protos wheels, so that no registry but the package index is needed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from google.api import annotations_pb2, http_pb2
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
)
from google.rpc import error_details_pb2, status_pb2
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUTPUT = ROOT / "gen"

FOREIGN: list[ModuleType] = [
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    http_pb2,
    annotations_pb2,
    status_pb2,
    error_details_pb2,
]


def foreign_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Return the files our contracts import, in dependency order."""
    bundle = descriptor_pb2.FileDescriptorSet()
    for module in FOREIGN:
        module.DESCRIPTOR.CopyToProto(bundle.file.add())
    bundle.file.add().MergeFromString(validate_pb.desc().proto.to_binary())
    return bundle


def protoc(work: Path, *arguments: str) -> None:
    """Run protoc with the script folder of this interpreter on the path, for its plugins."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"--descriptor_set_in={work / 'foreign.binpb'}",
        *arguments,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def generate(work: Path) -> None:
    """Write messages, stubs, service interfaces and the descriptor set into `work`."""
    (work / "foreign.binpb").write_bytes(foreign_descriptors().SerializeToString())
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    plugin = work / "protoc-gen-interface"
    plugin.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tools" / "protoc_gen_interface.py"}"\n')
    plugin.chmod(0o755)
    protoc(work, f"--python_out={work}", f"--mypy_out=quiet:{work}", *ours, "buf/validate/validate.proto")
    protoc(work, f"--plugin=protoc-gen-interface={plugin}", f"--interface_out={work}", *ours)
    # google/rpc/error_details.proto must be in the set, or Envoy drops whole error bodies.
    names = [*ours, "google/rpc/error_details.proto"]
    binary = work / "omnihub.binpb"
    protoc(work, "--include_imports", "--include_source_info", f"--descriptor_set_out={binary}", *names)
    plugin.unlink()
    (work / "foreign.binpb").unlink()
    for folder in {path.parent for path in (work / "omnihub").rglob("*_pb2.py")}:
        (folder / "__init__.py").touch()
        (folder.parent / "__init__.py").touch()
    (work / "omnihub" / "__init__.py").touch()


def main() -> None:
    """Generate into a new folder and swap it in, so that a failure leaves the old one whole."""
    work = OUTPUT.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    generate(work)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    work.rename(OUTPUT)


if __name__ == "__main__":
    main()
