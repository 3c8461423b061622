"""JSON documents that carry their own digest."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.format import documents

MAX_INTEGER = 2**53 - 1
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(-MAX_INTEGER, MAX_INTEGER)  # a larger whole number reads back as an integer, which JSON forbids
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda key: key != "sha256")
PAYLOADS = st.dictionaries(
    KEYS, st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
)


@given(PAYLOADS)
def test_a_document_comes_back_as_it_was(payload: dict[str, Any]) -> None:
    assert documents.parse(documents.dump(payload), name="x") == payload


def test_equal_payloads_give_equal_bytes() -> None:
    assert documents.dump({"b": 1.0, "a": {"d": 2, "c": 3}}) == documents.dump({"a": {"c": 3, "d": 2}, "b": 1})


def test_the_bytes_are_those_of_rfc_8785() -> None:
    assert documents.canonical({"€": 1e21, "\r": 0.1, "1": [True, None, "\x0f"]}) == (
        b'{"\\r":0.1,"1":[true,null,"\\u000f"],"\xe2\x82\xac":1e+21}'
    )


@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    whole = documents.dump({"shard": {"unit": 3, "key": "shards/00000/3"}, "rate": 0.25})
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << bit
    with pytest.raises(UserError, match=r"^here/x is"):
        documents.parse(bytes(flipped), name="here/x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b"[]",
        b'"text"',
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"a": NaN, "sha256": ""}',
        b'{"a": 9007199254740993, "sha256": ""}',
        b'{"a": "\\ud800", "sha256": ""}',
    ],
)
def test_what_is_no_document_is_named_as_such(data: bytes) -> None:
    with pytest.raises(UserError, match="here/x is not a document of a teacher cache"):
        documents.parse(data, name="here/x")


def test_another_payload_under_the_same_digest_is_damage() -> None:
    whole = documents.dump({"unit": 3})
    with pytest.raises(UserError, match="here/x is damaged"):
        documents.parse(whole.replace(b'"unit":3', b'"unit":4'), name="here/x")
