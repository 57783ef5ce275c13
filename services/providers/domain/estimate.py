"""A usage that the provider did not report is counted here and flagged, never taken as zero."""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import Usage

# Characters per token of ordinary English text.
_CHARS_PER_TOKEN = 4


def estimate_usage(input_chars: int, output_chars: int) -> Usage:
    """Return the usage that these many characters come to, at least one token each way."""
    return Usage(
        input_total=max(1, -(-input_chars // _CHARS_PER_TOKEN)),
        output_total=max(1, -(-output_chars // _CHARS_PER_TOKEN)),
        estimated=True,
    )
