"""What is printed cannot control a terminal, and JSON says the same with escapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.runtime.text import error_line, printable, storable, to_json, wants_json

# ESC and BEL, DEL, an 8-bit CSI, marks of direction, an invisible blank, a byte of a file name
HOSTILE = "\x1b]0;x\x07\x7f\x9b31m\u202e\u2066\u200f\u2028\ufeff\U000e0041\udcff"


def test_what_controls_a_terminal_becomes_visible() -> None:
    assert printable("a\x1b[31mb\u202ec\x9bd") == r"a\x1b[31mb\u202ec\x9bd"
    assert printable("a\nb\tc\u2028d") == "a b c d"
    assert printable("一只猫 🐈 é") == "一只猫 🐈 é"


@pytest.mark.parametrize("letter", HOSTILE)
def test_json_escapes_what_is_not_printable(letter: str) -> None:
    text = to_json({"a": letter, "é": "猫"})
    assert text.isprintable()
    assert "猫" in text
    assert json.loads(text) == {"a": letter, "é": "猫"}


@repeatable
@given(st.text())
def test_every_text_is_printable_in_both_forms(text: str) -> None:
    assert printable(text).isprintable()
    assert to_json(text).isprintable() and json.loads(to_json(text)) == text
    assert error_line(text, as_json=False).isprintable()
    assert error_line(text, as_json=True).isprintable()


def test_an_error_is_json_where_events_are() -> None:
    assert json.loads(error_line("a\nb", as_json=True)) == {"event": "error", "text": "a b"}
    assert error_line("a\nb", as_json=False) == "wanpipe: error: a b"
    assert wants_json(["show", "--events=json"]) and not wants_json(["show", "events"])


def test_data_to_store_has_no_half_of_a_surrogate_pair() -> None:
    data = {"a\udce9": ["b\udce9", ("🐈", 1, None)], "c": {"d": "é"}}
    assert storable(data) == {r"a\udce9": [r"b\udce9", ["🐈", 1, None]], "c": {"d": "é"}}
