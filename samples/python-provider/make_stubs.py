"""Write the Python code of the contract: `python make_stubs.py omnihub.binpb [stubs]`.

omnihub.binpb is the contract as one file; `make protos` writes it to gen/.
"""

import subprocess
import sys
from pathlib import Path

FILES = (
    "buf/validate/validate.proto",
    "omnihub/common/v1/chat.proto",
    "omnihub/common/v1/options.proto",
    "omnihub/common/v1/stream.proto",
    "omnihub/provider/v1/provider_service.proto",
)


def main(contract: str, folder: str = "stubs") -> None:
    """Write messages and stubs into `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={contract}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", *FILES]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
