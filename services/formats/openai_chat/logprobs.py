"""How likely the tokens of an answer were, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import TokenLogprob


class _Token(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0
    top_logprobs: list[_Token] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


_decoder = msgspec.json.Decoder(_Logprobs | None)


def read_logprobs(raw: msgspec.Raw) -> list[TokenLogprob]:
    """Return the tokens of a choice's `logprobs`; none of what is malformed."""
    try:
        read = _decoder.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [_token(each) for each in (read.content if read is not None else None) or ()]


def _token(read: _Token) -> TokenLogprob:
    top = [TokenLogprob(token=other.token, logprob=other.logprob) for other in read.top_logprobs or ()]
    return TokenLogprob(token=read.token, logprob=read.logprob, top=top)


def write_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return the `logprobs` of a choice."""
    return {
        "content": [
            {**_entry(each), "top_logprobs": [_entry(other) for other in each.top]} for each in tokens
        ],
        "refusal": None,
    }


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}
