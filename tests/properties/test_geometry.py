"""Sizes of films: what is refused, what is advised, and the canvases for an image."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.errors import UsageError
from wanpipe.models import geometry

MULTIPLES = st.sampled_from([16, 32])
SIDES = st.integers(1, 8000)
AREAS = st.integers(64 * 64, 1920 * 1088)
CANVASES = st.sampled_from([geometry.stretched_canvas, geometry.covered_canvas])


def advised(error: pytest.ExceptionInfo[UsageError]) -> list[int]:
    """The values that an error says to use; it is one line."""
    _, _, advice = str(error.value).partition("; use ")
    assert "\n" not in str(error.value)
    return [int(number) for number in re.findall(r"\d+", advice)]


@repeatable
@given(st.integers(-100, 10_200))
def test_a_wrong_count_of_frames_is_refused_with_the_nearest_right_ones(frames: int) -> None:
    if 1 <= frames <= geometry.LONGEST and (frames - 1) % 4 == 0:
        geometry.check_frames(frames)
        return
    with pytest.raises(UsageError) as error:
        geometry.check_frames(frames)
    for count in advised(error):
        geometry.check_frames(count)
        assert abs(count - frames) < 4 or frames < 1
    assert advised(error) or frames > geometry.LONGEST


@repeatable
@given(st.integers(-100, 17_000), MULTIPLES, st.booleans())
def test_a_wrong_side_is_refused_with_the_nearest_right_ones(
    side: int, multiple: int, upright: bool
) -> None:
    def check(value: int) -> None:
        geometry.check_size(*((multiple, value) if upright else (value, multiple)), multiple)

    if 1 <= side <= geometry.LARGEST and side % multiple == 0:
        check(side)
        return
    with pytest.raises(UsageError, match="height" if upright else "width") as error:
        check(side)
    for value in [value for value in advised(error) if value != geometry.LARGEST]:
        check(value)
        assert abs(value - side) < multiple or side < 1
    assert advised(error) or side > geometry.LARGEST


@repeatable
@given(CANVASES, SIDES, SIDES, AREAS, MULTIPLES)
def test_a_canvas_is_legal_within_its_area_and_near_the_aspect(
    canvas: object, image_width: int, image_height: int, area: int, multiple: int
) -> None:
    try:
        width, height = canvas(image_width, image_height, area, multiple)  # type: ignore[operator]
    except UsageError as error:
        # refused only where the exact canvas is less than a multiple wide, or very long
        aspect = max(image_width, image_height) / min(image_width, image_height)
        narrow = (area / aspect) ** 0.5
        assert narrow <= multiple or area / (narrow - multiple) > geometry.LARGEST - multiple
        assert "\n" not in str(error)
        return
    geometry.check_size(width, height, multiple)
    assert width * height <= area
    ratio = (width * image_height) / (height * image_width)
    # the side that is cut first loses less than a multiple, and the other one makes up for it
    bound = (1 + multiple / min(width, height)) ** 2
    assert 1 / bound < ratio < bound


@repeatable
@given(SIDES, SIDES, AREAS, MULTIPLES)
def test_an_image_that_is_turned_has_a_canvas_as_good(
    image_width: int, image_height: int, area: int, multiple: int
) -> None:
    def distortion(width: int, height: int) -> float:
        x, y = geometry.covered_canvas(width, height, area, multiple)
        return max(x * height / (y * width), y * width / (x * height))

    try:
        lying = distortion(image_width, image_height)
        upright = distortion(image_height, image_width)
    except UsageError:
        return
    assert lying == pytest.approx(upright)


@repeatable
@given(
    st.integers(1, 500),
    st.integers(1, 400),
    st.integers(0, 500),
    st.sampled_from([(4, 8, 8), (4, 16, 16)]),
)
def test_a_latent_holds_exactly_the_film(
    columns: int, rows: int, groups: int, stride: geometry.Triple
) -> None:
    width, height, frames = columns * stride[2], rows * stride[1], 1 + groups * stride[0]
    shape = geometry.latent_shape(width, height, frames, stride)
    assert shape == (1 + groups, rows, columns)
