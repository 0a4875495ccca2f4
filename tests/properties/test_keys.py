"""Canonical JSON: one text for one document, and one key for one text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.store.keys import canonical, is_key, key_of

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text()
FEW = st.sampled_from([None, False, 0, 0.0, -0.0, 1, True, 1.0, "", "1", "a"])


def documents(leaves: st.SearchStrategy[Any], names: st.SearchStrategy[str]) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=10,
    )


ANY = documents(LEAVES, st.text())
ALIKE = documents(FEW, st.sampled_from(["", "a", "b"]))  # so few that equal ones come up


def same(one: Any, other: Any) -> bool:
    """Whether two documents are equal with their types: 1, 1.0 and true are three."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)  # 0.0 and -0.0 are two


def reordered(document: Any) -> Any:
    """The same document, its objects built in another order."""
    if isinstance(document, dict):
        return {name: reordered(document[name]) for name in reversed(document)}
    return [reordered(one) for one in document] if isinstance(document, list) else document


@repeatable
@given(ANY)
def test_a_document_is_read_back_as_it_was(document: Any) -> None:
    assert same(json.loads(canonical(document)), document)


@repeatable
@given(ANY)
def test_a_document_has_one_text_whatever_the_order_of_its_names(document: Any) -> None:
    text = canonical(document)
    assert canonical(reordered(document)) == text == canonical(json.loads(text))
    assert b"\n" not in text


@repeatable
@given(ANY)
def test_a_key_has_the_form_of_a_key(document: Any) -> None:
    assert is_key(key_of(document))


@repeatable
@given(ALIKE, ALIKE)
def test_keys_are_equal_where_documents_are_and_nowhere_else(one: Any, other: Any) -> None:
    assert (key_of(one) == key_of(other)) == same(one, other)


@repeatable
@given(ANY, st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.text())
def test_what_is_no_number_has_no_key(document: Any, number: float, name: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        key_of([document, {name: number}])
