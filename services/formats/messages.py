"""Rules of conversations that hold in every format."""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import Message

from services.formats.errors import invalid


def check_tool_message(message: Message, path: str) -> None:
    """Raise FormatError when a tool speaks without saying which call it answers."""
    if message.role == "tool" and not any(p.WhichOneof("kind") == "tool_result" for p in message.parts):
        raise invalid(f"{path}.parts", "a message of role tool holds tool_result parts")
