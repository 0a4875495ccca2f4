"""Cleaning of prompts: what comes out is clean already."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.errors import UsageError
from wanpipe.pipeline.tokenizer import clean

PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0&"))
# no letters that can be misread UTF-8: what ftfy makes of those hangs on the blanks around them
CERTAIN = st.text(
    st.characters(codec="ascii", exclude_characters="\0&") | st.sampled_from("猫🐈語")
)
ANY = st.text(st.characters(codec=None, categories=None))
ENTITIES = st.lists(
    st.sampled_from(["&amp;", "&lt;", "&#32;", "&#0;", "&#xD800;", "&nbsp;", "&", ";", "a", " "])
).map("".join)


@repeatable
@given(PLAIN | ENTITIES)
def test_a_clean_prompt_has_single_blanks_and_none_at_its_ends(prompt: str) -> None:
    text = clean(prompt)
    assert text == text.strip() and not re.search(r"\s\s|[^\S ]", text)


@repeatable
@given(CERTAIN)
def test_a_clean_prompt_stays_as_it_is(prompt: str) -> None:
    assert clean(clean(prompt)) == clean(prompt)


@repeatable
@given(CERTAIN | st.text("<>a"), st.integers(1, 2), st.sampled_from(["", "<"]))
def test_a_prompt_that_was_escaped_is_the_prompt(prompt: str, times: int, front: str) -> None:
    # behind a bare "<" ftfy takes the text for HTML, and leaves it
    escaped = prompt
    for _ in range(times):
        escaped = html.escape(escaped, quote=False)
    assert clean(front + escaped) == clean(front + prompt)


@repeatable
@given(ANY)
def test_any_text_is_cleaned_or_refused_in_one_line(prompt: str) -> None:
    try:
        clean(prompt).encode()
    except UsageError as error:
        assert "\n" not in str(error) and ("\0" in prompt or "surrogate" in str(error))
