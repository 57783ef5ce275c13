"""Finish reasons, blocked prompts and usage."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Usage

from services.formats.usage import reported

_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "ESCALATION": "content_filter",
    "MALFORMED_FUNCTION_CALL": "malformed",
    "MALFORMED_RESPONSE": "malformed",
    "UNEXPECTED_TOOL_CALL": "malformed",
    "CONTINUATION": "pause",
    "LANGUAGE": "error",
    "OTHER": "error",
    "IMAGE_OTHER": "error",
    "NO_IMAGE": "error",
    "TOO_MANY_TOOL_CALLS": "error",
    "MISSING_THOUGHT_SIGNATURE": "error",
    "PUP_LIMITED_DISABLED": "error",
    "FINISH_REASON_UNSPECIFIED": "unknown",
}


def read_finish(word: str, called_tools: bool) -> Finish:
    """Return the finish that `word` means; a word nobody knows is `unknown`, never `stop`.

    This provider says STOP for tool calls too.
    """
    reason = _REASONS.get(word, "unknown")
    return Finish(reason="tool_calls" if reason == "stop" and called_tools else reason, raw=word)


class PromptFeedback(msgspec.Struct, rename="camel"):
    """What moderation says about the prompt."""

    block_reason: str | None = None
    block_reason_message: str | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    prompt_feedback: PromptFeedback | None = None


_feedback_decoder = msgspec.json.Decoder(_Feedback)


def blocked(feedback: PromptFeedback | None) -> dict[str, str] | None:
    """Return a blocked prompt as an error object, None when it is not blocked."""
    if feedback is None or not feedback.block_reason:
        return None
    message = feedback.block_reason_message or "the prompt was blocked"
    return {"type": "prompt_blocked", "code": feedback.block_reason, "message": message}


def read_block(body: bytes) -> dict[str, str] | None:
    """Return the error object of an answer whose prompt was blocked, which comes with status 200."""
    if b'"blockReason"' not in body:
        return None
    try:
        return blocked(_feedback_decoder.decode(body).prompt_feedback)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # The reader of the answer says what is wrong.


class TokensDetail(msgspec.Struct, rename="camel"):
    """Tokens of one modality."""

    modality: str | None = None
    token_count: int | None = None


class WireUsage(msgspec.Struct, rename="camel"):
    """Usage on the wire. Thoughts are not part of the candidates' tokens; cached ones are in the prompt's."""

    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    prompt_tokens_details: list[TokensDetail] | None = None
    candidates_tokens_details: list[TokensDetail] | None = None


def read_usage(wire: WireUsage | None) -> Usage | None:
    """Return the usage that the provider reported, None when it reported none."""
    if wire is None or wire.prompt_token_count is None:
        return None
    thoughts = wire.thoughts_token_count or 0
    return reported(
        input_total=wire.prompt_token_count + (wire.tool_use_prompt_token_count or 0),
        cache_read=wire.cached_content_token_count or 0,
        output_total=(wire.candidates_token_count or 0) + thoughts,
        output_reasoning=thoughts,
        input_audio=_of(wire.prompt_tokens_details, "AUDIO"),
        input_image=_of(wire.prompt_tokens_details, "IMAGE"),
        output_audio=_of(wire.candidates_tokens_details, "AUDIO"),
    )


def _of(details: list[TokensDetail] | None, modality: str) -> int:
    return sum(detail.token_count or 0 for detail in details or () if detail.modality == modality)
