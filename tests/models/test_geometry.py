"""Valid sizes, and the canvases that the official image-to-video code selects."""

import pytest
from PIL import Image

from tests.conftest import DATA, golden, settings
from wanpipe.errors import UsageError
from wanpipe.models import geometry

STRIDE_21, STRIDE_22, PATCH = (4, 8, 8), (4, 16, 16), (1, 2, 2)


@pytest.mark.parametrize(
    ("frames", "remedy"), [(80, "77 or 81"), (2, "1 or 5"), (0, "1"), (-3, "1"), (-40, "1")]
)
def test_invalid_frame_counts_suggest_the_nearest_valid_ones(frames: int, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        geometry.check_frames(frames)
    assert str(caught.value) == f"frames must be 4n+1, got {frames}; use {remedy}"


@pytest.mark.parametrize(
    ("size", "multiple", "message"),
    [
        ((470, 832), 16, "width must be a multiple of 16, got 470; use 464 or 480"),
        ((480, 833), 16, "height must be a multiple of 16, got 833; use 832 or 848"),
        ((1280, 720), 32, "height must be a multiple of 32, got 720; use 704 or 736"),
        ((0, 16), 16, "width must be a multiple of 16, got 0; use 16"),
        ((16, -32), 16, "height must be a multiple of 16, got -32; use 16"),
        ((9, 16), 16, "width must be a multiple of 16, got 9; use 16"),
    ],
)
def test_invalid_sides_suggest_the_nearest_valid_ones(
    size: tuple[int, int], multiple: int, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        geometry.check_size(*size, multiple)
    assert str(caught.value) == message


def test_valid_sizes_pass() -> None:
    for frames in (1, 5, 81, 121):
        geometry.check_frames(frames)
    geometry.check_size(1280, 720, 16)
    geometry.check_size(1280, 704, 32)


def test_side_multiples_are_16_and_32() -> None:
    assert geometry.side_multiple(STRIDE_21, PATCH) == 16
    assert geometry.side_multiple(STRIDE_22, PATCH) == 32


def test_latent_shapes_match_the_official_code() -> None:
    assert geometry.latent_shape(832, 480, 81, STRIDE_21) == (21, 60, 104)
    assert geometry.latent_shape(1280, 704, 121, STRIDE_22) == (31, 44, 80)
    assert geometry.latent_shape(48, 32, 1, STRIDE_21) == (1, 4, 6)


@pytest.mark.parametrize(
    ("model", "topic", "stride"),
    [
        ("wan21-i2v", "e2e", STRIDE_21),
        *(("wan21-flf2v", topic, STRIDE_21) for topic in ("e2e", "e2e_short", "e2e_sizes")),
        ("wan22-i2v-a14b", "e2e", STRIDE_21),
        ("wan22-ti2v-5b", "e2e_i2v", STRIDE_22),
    ],
)
def test_the_canvas_of_an_image_matches_the_official_code(
    model: str, topic: str, stride: tuple[int, int, int]
) -> None:
    pick = geometry.covered_canvas if stride == STRIDE_22 else geometry.stretched_canvas
    official = settings(f"{model}/{topic}")
    name = official.get("first_frame", "image.png")
    with Image.open(DATA / "expected" / model / name) as image:
        width, height = pick(
            *image.size, official["max_area"], geometry.side_multiple(stride, PATCH)
        )
    shape = geometry.latent_shape(width, height, official["frame_num"], stride)
    assert shape == golden(f"{model}/{topic}")["noise"].shape[1:]


@pytest.mark.parametrize(
    ("image", "stretched", "covered"),
    [
        ((1920, 1080), (832, 464), (832, 480)),
        ((1080, 1920), (464, 832), (480, 832)),
        ((1000, 1000), (624, 624), (640, 608)),
        ((1, 1), (624, 624), (640, 608)),
        # the official square root is just below 480 here, but not for the portrait image
        ((832, 480), (832, 464), (832, 480)),
        ((480, 832), (480, 832), (480, 832)),
    ],
)
def test_canvases_within_832x480_are_pinned(
    image: tuple[int, int], stretched: tuple[int, int], covered: tuple[int, int]
) -> None:
    assert geometry.stretched_canvas(*image, 832 * 480, 16) == stretched
    assert geometry.covered_canvas(*image, 832 * 480, 32) == covered


def test_canvases_are_valid_and_within_the_area() -> None:
    for width in range(10, 1000, 37):
        for height in range(10, 1000, 41):
            for pick in (geometry.stretched_canvas, geometry.covered_canvas):
                canvas = pick(width, height, 1280 * 704, 32)
                geometry.check_size(*canvas, 32)
                assert canvas[0] * canvas[1] <= 1280 * 704


@pytest.mark.parametrize("pick", [geometry.stretched_canvas, geometry.covered_canvas])
@pytest.mark.parametrize("image", [(1, 100_000), (100_000, 1)])
def test_an_image_too_narrow_for_any_canvas_is_refused(
    pick: object, image: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="give --width and --height"):
        pick(*image, 832 * 480, 32)  # type: ignore[operator]
