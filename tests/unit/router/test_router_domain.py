"""The router's pure decisions."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import ChatInput, MediaPart, Message, Part, Tool, ToolResult

from services.credits.rating import bound
from services.router.domain.catalogue import Catalogue, Provider, Target
from services.router.domain.errors import ModelNotAllowedError, ModelNotFoundError
from services.router.domain.estimate import LARGEST, input_bound
from services.router.settings import RouteSettings

FEATURES = frozenset({"chat", "stream"})
NAMES = ("a", "b", "c", "d")


def catalogue(**routes: list[str]) -> Catalogue:
    providers = [Provider(name, "fake", FEATURES, False) for name in NAMES]
    providers.append(Provider("rules", "local", FEATURES | {"embed"}, True))
    named = {name.replace("_", "-"): RouteSettings(route=route) for name, route in routes.items()}
    return Catalogue.build(named, providers)


def test_names() -> None:
    known = catalogue(support_chat=["a/x", "b/y/z"])
    found = known.find("support-chat", ())
    assert (found.targets, found.priced_as) == ((Target("a", "x"), Target("b", "y/z")), "support-chat")
    direct = known.find("a/other/model", ())
    assert (direct.targets, direct.priced_as) == ((Target("a", "other/model"),), "")


@pytest.mark.parametrize("name", ["support-chta", "a/", "/x", "a", "nobody/x", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        catalogue(support_chat=["a/x"]).find(name, ())


def test_close_names_are_suggested() -> None:
    known = catalogue(support_chat=["a/x"])
    with pytest.raises(ModelNotFoundError, match="did you mean support-chat"):
        known.find("support-chta", ())
    with pytest.raises(ModelNotFoundError, match="GET /v1/models"):
        known.find("zzzzzz", ())


@pytest.mark.parametrize(
    ("name", "allowed", "may"),
    [
        ("support-chat", (), True),
        ("support-chat", ("support-*",), True),
        ("support-chat", ("other", "support-chat"), True),
        ("support-chat", ("a/*",), False),
        ("a/x", ("a/*",), True),
        ("a/x", ("A/*",), False),
        ("a/x", ("support-chat",), False),
    ],
)
def test_allowed_models(name: str, allowed: tuple[str, ...], may: bool) -> None:
    known = catalogue(support_chat=["a/x"])
    if may:
        assert known.find(name, allowed).name == name
    else:
        with pytest.raises(ModelNotAllowedError):
            known.find(name, allowed)


texts = st.lists(st.text(max_size=300), min_size=1, max_size=5)


@given(texts)
def test_text_is_bounded_by_its_bytes(pieces: list[str]) -> None:
    size = sum(len(piece.encode()) for piece in pieces)
    chat = ChatInput(messages=[Message(role="user", content=piece) for piece in pieces])
    assert input_bound(b"", chat) >= size
    messages = [{"role": "user", "content": piece} for piece in pieces]
    for ascii_only in (True, False):
        raw = json.dumps({"messages": messages}, ensure_ascii=ascii_only).encode()
        assert input_bound(raw, chat) >= size


@given(st.binary(min_size=1), st.integers(1, 300))
def test_text_that_looks_like_media_is_text(data: bytes, times: int) -> None:
    text = base64.b64encode(data * times).decode()
    for content in (text, f'"data":"{text}"', f"data:image/png;base64,{text}"):
        raw = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
        assert input_bound(raw, ChatInput()) >= len(text)


IMAGE = base64.b64encode(bytes(3_000_000)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
        {"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{IMAGE}"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}},
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_media_counts_as_media(part: dict[str, object], escaped: bool) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    if escaped:
        raw = raw.replace(b"/", b"\\/")
    assert 4096 <= input_bound(raw, ChatInput()) < len(IMAGE) // 10


def nested(path: str, value: object) -> dict[str, object]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]


TEXT = base64.b64encode(bytes(60_000)).decode()
URL = f"data:image/png;base64,{TEXT}"
PLAIN = base64.b64encode(b"not an image at all, but a text " * 2000).decode()


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"data": TEXT}}}]},
        {"tools": [nested("input_schema.properties.x.url", URL)]},
        {"tools": [{"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": TEXT}}]}]}]},
        {"response_format": nested("json_schema.schema.file_data", URL)},
        {"system": [{"type": "image", "source": {"type": "base64", "data": TEXT}}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"data": TEXT}}]}]},
        {"messages": [{"content": [{"type": "tool_use", "input": nested("source.data", TEXT)}]}]},
        {"messages": [{"content": [{"type": "document", "source": {"type": "text", "data": TEXT}}]}]},
        {"messages": [{"content": [{"type": "redacted_thinking", "data": TEXT}]}]},
        {"messages": [{"content": [{"type": "text", "text": "x", "data": TEXT}]}]},
        {
            "messages": [
                {"content": [{"type": "file", "file": {"file_data": f"data:text/csv;base64,{PLAIN}"}}]}
            ]
        },
        {"input": [{"type": "input_file", "file_data": f"data:application/json;base64,{PLAIN}"}]},
        {"input": [{"type": "function_call_output", "output": nested("deep.data", TEXT)}]},
    ],
    ids=range(13),
)
def test_what_only_has_the_look_of_media_is_text(body: dict[str, object]) -> None:
    raw = json.dumps(body).encode()
    assert input_bound(raw, ChatInput()) >= len(raw)


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
        {"input": [{"type": "input_image", "image_url": URL}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": URL}]}]},
        {"input": [{"output": {"type": "computer_screenshot", "image_url": URL}}]},
        {
            "input": [
                {"content": [{"type": "input_file", "file_data": f"data:application/pdf;base64,{TEXT}"}]}
            ]
        },
        {
            "messages": [
                {
                    "content": [
                        {
                            "type": "tool_result",
                            "content": [
                                {
                                    "type": "image",
                                    "source": {"type": "base64", "media_type": "image/png", "data": TEXT},
                                }
                            ],
                        }
                    ]
                }
            ]
        },
    ],
    ids=range(6),
)
def test_media_counts_as_media_wherever_a_format_has_it(body: dict[str, object]) -> None:
    assert 4096 <= input_bound(json.dumps(body).encode(), ChatInput()) < len(TEXT) // 4


def test_a_typed_document_of_text_is_text() -> None:
    document = Part(document=MediaPart(data=b"text " * 20_000, mime="text/plain"))
    assert input_bound(b"", ChatInput(messages=[Message(role="user", parts=[document])])) >= 100_000
    document.document.mime = "application/pdf"
    assert input_bound(b"", ChatInput(messages=[Message(role="user", parts=[document])])) < 10_000


def test_an_address_counts_as_what_it_leads_to() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    raw = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    assert input_bound(raw, ChatInput()) >= 4096


def test_typed_media_counts_as_media() -> None:
    image = Part(image=MediaPart(data=bytes(1_000_000), mime="image/png"))
    result = Part(tool_result=ToolResult(call_id="1", parts=[image]))
    for part in (image, result):
        chat = ChatInput(messages=[Message(role="user", parts=[part])])
        assert 4096 <= input_bound(b"", chat) < 100_000


def test_tools_count() -> None:
    plain = ChatInput(messages=[Message(role="user", content="hi")])
    tooled = ChatInput(messages=plain.messages, tools=[Tool(name="t", parameters_json="{}")])
    assert input_bound(b"", tooled) > input_bound(b"", plain) + 500
    assert input_bound(b"{}", plain, tools=True) > input_bound(b"{}", plain) + 500


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":"' + b"a" * 5_000_000 + b' "}',
        b'"' * 5_000_000,
        b'"url":"' * 700_000,
        b'"url":"\\' * 600_000,
        b'"data":"aaaa ' * 400_000,
        (b'"url"' + b" " * 1000) * 5000,
        b'"data":"data:' * 400_000,
        b'"data":"' + b"data:" * 1_000_000 + b'"',
        b'{"data":"' + b"a" * 5000 + b'","messages":[' + b"[" * 5_000_000,
        b'{"data":"' + b"a" * 5000 + b'","messages":[' + b'{"type":"a"},' * 100_000 + b"{}]}",
        b'{"data":"'
        + b"a" * 5000
        + b'","messages":'
        + b'[{"content":' * 400
        + b'[{"type":"file"}]'
        + b"}]" * 400
        + b"}",
    ],
    ids=range(11),
)
def test_no_body_takes_long(body: bytes) -> None:
    started = time.process_time()
    assert 0 < input_bound(body, ChatInput()) <= LARGEST
    assert time.process_time() - started < 2


@given(st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_bound_fits_what_it_is_stored_in(
    input_tokens: int, output_tokens: int, dear: int, dearer: int
) -> None:
    amount = bound(input_tokens, output_tokens, Price(input_pico=dear, output_pico=dearer))
    assert 0 <= amount < 2**63 // 4
