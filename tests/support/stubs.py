"""gRPC stubs as any user of the contracts generates them, from the published descriptor set."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.support.forks import ROOT


def generated_stubs(folder: Path, proto: str) -> ModuleType:
    """Run protoc's gRPC plugin for one file, such as `omnihub/router/v1/router_service.proto`."""
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--descriptor_set_in={ROOT / 'gen' / 'omnihub.binpb'}",
        f"--grpc_python_out={folder}",
        proto,
    ]
    subprocess.run(command, check=True)
    file = folder / f"{proto.removesuffix('.proto')}_pb2_grpc.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
