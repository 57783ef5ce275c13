"""How likely the tokens of an answer were."""

from __future__ import annotations

from itertools import zip_longest

import msgspec
from omnihub.common.v1.chat_pb2 import TokenLogprob


class _Token(msgspec.Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _Top(msgspec.Struct):
    candidates: list[_Token] = []


class _Result(msgspec.Struct, rename="camel"):
    chosen_candidates: list[_Token] = []
    top_candidates: list[_Top] = []


_decoder = msgspec.json.Decoder(_Result)


def read_logprobs(raw: msgspec.Raw) -> list[TokenLogprob]:
    """Return the tokens of a `logprobsResult`; none of what is malformed."""
    try:
        read = _decoder.decode(raw) if raw else _Result()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [
        TokenLogprob(
            token=chosen.token,
            logprob=chosen.log_probability,
            top=[
                TokenLogprob(token=other.token, logprob=other.log_probability)
                for other in (top.candidates if top is not None else ())
            ],
        )
        for chosen, top in zip_longest(
            read.chosen_candidates, read.top_candidates[: len(read.chosen_candidates)]
        )
    ]
