"""Write docs/errors.md from the table in protos/omnihub/common/v1/errors.proto: `make docs`."""

from pathlib import Path

from google.rpc import code_pb2
from omnihub.common.v1 import errors_pb2, options_pb2

TARGET = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
PREFIX = "ERROR_REASON_"
HEAD = """# Errors

Generated from `protos/omnihub/common/v1/errors.proto` by `make docs`; do not edit.

Every error names one reason, and each surface shows it in its own way: `ErrorInfo.reason` in gRPC status
details, `error.reason` in the bodies of `/api` and native `/v1` paths, `error.type` and `error.code` in
OpenAI-shaped bodies, `error.type` in Anthropic-shaped ones. The HTTP status is the same on all of them.

| reason | gRPC | HTTP | OpenAI `type` / `code` | Anthropic `type` | what to do |
|---|---|---|---|---|---|
"""


def document() -> str:
    """Return the page."""
    lines = []
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values:
        if value.number:
            row = value.GetOptions().Extensions[options_pb2.reason]
            cells = [
                f"`{value.name.removeprefix(PREFIX)}`",
                code_pb2.Code.Name(row.grpc),
                str(row.http),
                f"`{row.openai_type}` / `{row.openai_code}`",
                f"`{row.anthropic_type}`",
                row.recovery,
            ]
            lines.append("| " + " | ".join(cells) + " |\n")
    return HEAD + "".join(lines)


def main() -> None:
    """Write the page."""
    TARGET.write_text(document())


if __name__ == "__main__":
    main()
