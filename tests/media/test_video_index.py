"""Which frames are chosen by time, against the official code's choice and by hand."""

from fractions import Fraction

import numpy as np
import pytest

from tests.conftest import golden, settings
from wanpipe.errors import UsageError
from wanpipe.media.video_index import (
    VideoIndex,
    choose_first,
    choose_last,
    choose_whole,
    seconds_of,
)

ROWS = settings("wan21-vace/frames")["rows"]


def constant(frames: int, fps: float, width: int = 64, height: int = 64) -> VideoIndex:
    starts = np.arange(frames + 1) / fps
    return VideoIndex(width=width, height=height, times=starts[:-1], ends=starts[1:])


@pytest.mark.parametrize("name", ROWS)
def test_a_film_is_thinned_as_officially(name: str) -> None:
    row = ROWS[name]
    index = constant(row["frames"], float(Fraction(row["fps"])), row["width"], row["height"])
    chosen = choose_whole(index, None, row["area"])
    assert (chosen.width, chosen.height) == (row["out_width"], row["out_height"])
    assert chosen.indices.tolist() == golden("wan21-vace/frames")[name].tolist()


def test_a_shorter_mask_cuts_the_film() -> None:
    film, mask = constant(300, 30), constant(40, 8)
    cut = choose_whole(film, mask, 480 * 832).indices
    assert cut.tolist() == choose_whole(constant(40, 30), None, 480 * 832).indices.tolist()


def test_a_film_smaller_than_a_token_is_refused() -> None:
    for width, height in ((15, 900), (16, 40000)):
        with pytest.raises(UsageError, match=f"{width}x{height} is too small or too narrow"):
            choose_whole(constant(9, 16, width, height), None, 480 * 832)


def test_frames_are_those_on_screen_at_the_rate() -> None:
    assert choose_first(constant(90, 30), 16, 9).tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15]
    assert choose_first(constant(20, 8), 16, 5).tolist() == [0, 0, 1, 1, 2]
    assert choose_last(constant(90, 30), 15, 3).tolist() == [85, 87, 89]
    for rate in (16, 24, 30000 / 1001, 12.5):
        assert choose_first(constant(500, rate), rate).tolist() == list(range(500))
        assert choose_last(constant(500, rate), rate, 81).tolist() == list(range(419, 500))


def test_a_short_film_gives_fewer_frames() -> None:
    assert len(choose_first(constant(10, 30), 16, 81)) == 6
    assert choose_last(constant(3, 16), 16, 81).tolist() == [0, 1, 2]


def test_a_variable_rate_is_followed() -> None:
    starts = np.array([0.0, 0.1, 0.5, 0.6, 2.0])
    film = VideoIndex(width=8, height=8, times=starts[:-1], ends=starts[1:])
    assert choose_first(film, 4).tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert choose_last(film, 10, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("rate", [Fraction(16), Fraction(24), Fraction(30000, 1001), Fraction(25)])
def test_times_in_whole_milliseconds_are_made_even(rate: Fraction) -> None:
    ticks = np.array([round(1000 * number / rate) for number in range(200)])
    exact = np.arange(200) * rate.denominator / rate.numerator
    assert np.array_equal(seconds_of(ticks, Fraction(1, 1000)), exact)


def test_a_variable_rate_is_not_made_even() -> None:
    ticks = np.array([0, 62, 125, 187, 250, 600, 663])
    assert seconds_of(ticks, Fraction(1, 1000)).tolist() == (ticks / 1000).tolist()
    dropped = np.array([0, 1, 2, 4, 5])
    assert seconds_of(dropped, Fraction(1, 25)).tolist() == (dropped / 25).tolist()
