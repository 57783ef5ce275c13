"""How likely the tokens of an answer were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from omnihub.common.v1.chat_pb2 import TokenLogprob


class _Token(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0
    top_logprobs: list[_Token] | None = None


_decoder = msgspec.json.Decoder(list[_Token] | None)


def read_logprobs(raw: msgspec.Raw) -> list[TokenLogprob]:
    """Return the tokens of an answer or a line; none of what is malformed."""
    try:
        read = _decoder.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [
        TokenLogprob(
            token=each.token,
            logprob=each.logprob,
            top=[TokenLogprob(token=other.token, logprob=other.logprob) for other in each.top_logprobs or ()],
        )
        for each in read or ()
    ]


def last_of(tokens: Sequence[TokenLogprob], text: str) -> Sequence[TokenLogprob]:
    """Return the tokens at the end that make up the text."""
    missing = len(text)
    for position in range(len(tokens) - 1, -1, -1):
        if missing <= 0:
            return tokens[position + 1 :]
        missing -= len(tokens[position].token)
    return tokens
