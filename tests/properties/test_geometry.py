"""Sizes of videos: validation, suggestions, and canvases for an image."""

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


def suggested(error: pytest.ExceptionInfo[UsageError]) -> list[int]:
    """Return the values that a one-line error suggests."""
    _, _, advice = str(error.value).partition("; use ")
    assert "\n" not in str(error.value)
    return [int(number) for number in re.findall(r"\d+", advice)]


@repeatable
@given(st.integers(-100, 10_200))
def test_an_invalid_frame_count_suggests_the_nearest_valid_ones(frames: int) -> None:
    if 1 <= frames <= geometry.MAX_FRAMES and (frames - 1) % 4 == 0:
        geometry.check_frames(frames)
        return
    with pytest.raises(UsageError) as error:
        geometry.check_frames(frames)
    for count in suggested(error):
        geometry.check_frames(count)
        assert abs(count - frames) < 4 or frames < 1
    assert suggested(error) or frames > geometry.MAX_FRAMES


@repeatable
@given(st.integers(-100, 17_000), MULTIPLES, st.booleans())
def test_an_invalid_side_suggests_the_nearest_valid_ones(
    side: int, multiple: int, upright: bool
) -> None:
    def check(value: int) -> None:
        geometry.check_size(*((multiple, value) if upright else (value, multiple)), multiple)

    if 1 <= side <= geometry.MAX_SIDE and side % multiple == 0:
        check(side)
        return
    with pytest.raises(UsageError, match="height" if upright else "width") as error:
        check(side)
    for value in [value for value in suggested(error) if value != geometry.MAX_SIDE]:
        check(value)
        assert abs(value - side) < multiple or side < 1
    assert suggested(error) or side > geometry.MAX_SIDE


@repeatable
@given(CANVASES, SIDES, SIDES, AREAS, MULTIPLES)
def test_a_canvas_is_valid_within_its_area_and_close_to_the_aspect(
    canvas: object, image_width: int, image_height: int, area: int, multiple: int
) -> None:
    try:
        width, height = canvas(image_width, image_height, area, multiple)  # type: ignore[operator]
    except UsageError as error:
        # refused only if the exact canvas is less than a multiple wide, or very long
        aspect = max(image_width, image_height) / min(image_width, image_height)
        narrow = (area / aspect) ** 0.5
        assert narrow <= multiple or area / (narrow - multiple) > geometry.MAX_SIDE - multiple
        assert "\n" not in str(error)
        return
    geometry.check_size(width, height, multiple)
    assert width * height <= area
    ratio = (width * image_height) / (height * image_width)
    # the side that is rounded first loses less than a multiple, and the other compensates
    bound = (1 + multiple / min(width, height)) ** 2
    assert 1 / bound < ratio < bound


@repeatable
@given(SIDES, SIDES, AREAS, MULTIPLES)
def test_a_rotated_image_has_an_equally_good_canvas(
    image_width: int, image_height: int, area: int, multiple: int
) -> None:
    def distortion(width: int, height: int) -> float:
        x, y = geometry.covered_canvas(width, height, area, multiple)
        return max(x * height / (y * width), y * width / (x * height))

    try:
        landscape = distortion(image_width, image_height)
        portrait = distortion(image_height, image_width)
    except UsageError:
        return
    assert landscape == pytest.approx(portrait)


@repeatable
@given(
    st.integers(1, 500),
    st.integers(1, 400),
    st.integers(0, 500),
    st.sampled_from([(4, 8, 8), (4, 16, 16)]),
)
def test_the_latent_shape_is_exact(
    columns: int, rows: int, groups: int, stride: geometry.Triple
) -> None:
    width, height, frames = columns * stride[2], rows * stride[1], 1 + groups * stride[0]
    shape = geometry.latent_shape(width, height, frames, stride)
    assert shape == (1 + groups, rows, columns)
