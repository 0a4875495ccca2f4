"""Sizes, ages and times read back as formatted, and other text is refused."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.errors import UsageError
from wanpipe.runtime import units

# any, and those that three digits round up to the next unit
BYTES = st.integers(0, 10**16) | st.builds(
    lambda power, part: int(1000**power * part), st.integers(1, 5), st.floats(0.998, 1.002)
)
UNITS = st.sampled_from([("", 0), ("k", 1), ("K", 1), ("M", 2), ("G", 3), ("g", 3), ("T", 4)])


@repeatable
@given(st.integers(0, 10**30), UNITS, st.booleans(), st.sampled_from(["", " ", "  "]))
def test_a_whole_size_is_read_exactly(
    count: int, unit: tuple[str, int], binary: bool, blank: str
) -> None:
    letter, power = unit
    binary = binary and bool(letter)
    size = units.parse_size(f"{count}{blank}{letter}{'iB' if binary else 'B'}")
    assert size == count * (1024 if binary else 1000) ** power


@repeatable
@given(st.decimals(0, 10**6, places=3), UNITS)
def test_a_fractional_size_is_rounded_down_to_bytes(number: object, unit: tuple[str, int]) -> None:
    exact = Fraction(str(number)) * 1000 ** unit[1]
    assert units.parse_size(f"{number}{unit[0]}") == int(exact)


@repeatable
@given(BYTES)
def test_a_formatted_size_is_read_back_to_three_digits(size: int) -> None:
    text = units.format_si(size, "B")
    assert "e" not in text and len(text.split()[0]) <= 6
    assert abs(units.parse_size(text) - size) <= 0.005 * size + 0.5


@repeatable
@given(BYTES, BYTES)
def test_formatting_keeps_the_order_of_sizes(one: int, other: int) -> None:
    low, high = sorted([one, other])
    assert units.parse_size(units.format_si(low, "B")) <= units.parse_size(
        units.format_si(high, "B")
    )


@repeatable
@given(st.integers(0, 10**6), st.sampled_from("mhdw"))
def test_an_age_is_parsed_and_formatted(count: int, unit: str) -> None:
    seconds = units.parse_age(f"{count}{unit}")
    assert seconds == count * {"m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    number, name = units.format_age(seconds).split()
    length = {"s": 1, "min": 60, "h": 3600, "d": 86400}[name]
    assert 0 <= seconds - int(number) * length < length


@repeatable
@given(st.text(max_size=12) | st.text("0123456789.kMGTiBmhdw -", max_size=12))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    for read in (units.parse_size, units.parse_age):
        try:
            assert read(text) >= 0
        except UsageError as error:
            assert "\n" not in str(error)


@repeatable
@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_the_time_of_a_record_is_read_back_in_any_time_zone(time: datetime, minutes: int) -> None:
    moment = time.replace(tzinfo=UTC)
    there = moment.astimezone(timezone(timedelta(minutes=minutes)))
    assert units.parse_timestamp(there.isoformat()) == pytest.approx(moment.timestamp(), abs=1e-5)
    assert units.parse_timestamp(time.isoformat()) == pytest.approx(moment.timestamp(), abs=1e-5)


@repeatable
@given(st.text(), st.integers(1, 40))
def test_a_quoted_prompt_is_one_printable_line(prompt: str, length: int) -> None:
    shown = units.quote(prompt, length)
    assert shown.isprintable() and len(shown) <= length + 2
