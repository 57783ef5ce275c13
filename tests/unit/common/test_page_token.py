import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.errors import RpcError


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60), max_size=4
    )
)
def test_what_was_encoded_is_decoded(values: list[str]) -> None:
    assert decode_page_token(encode_page_token(*values), len(values)) == tuple(values)


def test_numbers_come_back_as_text() -> None:
    assert decode_page_token(encode_page_token(7, "key_1"), 2) == ("7", "key_1")


@pytest.mark.parametrize(
    "token",
    [
        "garbage",
        "é",
        "=",
        "AAAA",
        encode_page_token("one"),
        encode_page_token("one", "two", "three"),
        encode_page_token("one", "nul\0"),
        base64.urlsafe_b64encode(json.dumps([1, 2]).encode()).decode(),
        base64.urlsafe_b64encode(json.dumps({"a": 1, "b": 2}).encode()).decode(),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        "A" * 100_000,
    ],
)
def test_anything_else_is_refused_and_the_field_named(token: str) -> None:
    with pytest.raises(RpcError) as caught:
        decode_page_token(token, 2)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert caught.value.violations[0].field == "page_token"
