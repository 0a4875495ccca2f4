"""encode-video and denoise: what they refuse of videos, masks and images, before they read them."""

from pathlib import Path

import pytest

from tests.test_encode_video import NINE, SIDES, encode, furnished
from tests.workshop import Models, Place

REFUSALS = {
    "wan21-vace": [
        (("--mask", "right.png"), "--mask is about a video, but none is given"),
        (("--extend", 5), "--extend is about a video"),
        (("--outpaint", "8,8,8,8"), "--outpaint is about a video"),
        (("--video", "clip", "--keyframe", 0, "first.png"), "exclude each other"),
        (("--video", "clip", "--extend", 5, "--mask", "right.png"), "exclude each other"),
        (("--video", "clip", "--extend", 4), "extend must be 4n+1"),
        (("--video", "clip", "--extend", 13), "must be less than the 9 frames"),
        (("--video", "clip", "--outpaint", "0,0,0,0"), "outpaint must be pixels to add"),
        (("--keyframe", 9, "first.png"), "a key frame must be 0 to 8"),
        (("--keyframe", 8, "first.png", "--keyframe", -1, "last.png"), "different numbers"),
        (("--video", "clip", "--video-fit", "whole"), "excludes --num-frames"),
        (("--video", "clip", "--mask", "wide.png"), "a mask must have the aspect ratio"),
        (("--video-fit", "whole"), "--video-fit is about a video"),
        (("--video", "gone.mp4"), "gone.mp4"),
        (("--video", "gone.mp4", "--width", 100), "width must be a multiple of 16"),
        (("--reference", "gone.png"), "no image at"),
    ],
    "wan21-t2v": [
        ((), "needs a video"),
        (("--reference", "first.png"), "cannot use --reference; use a VACE model"),
        (("--keyframe", 0, "first.png"), "cannot use --keyframe; use a VACE model"),
        (("--video", "clip", "--outpaint", "8,8,8,8"), "cannot use --outpaint; use a VACE"),
        (("--video", "clip", "--extend", 5), "use an I2V, TI2V or VACE model"),
    ],
    "wan22-i2v-a14b": [(("--video", "clip"), "can only continue a video")],
    "wan21-flf2v": [(("--video", "clip", "--extend", 5), "so it cannot use a video; use an I2V")],
}


@pytest.mark.parametrize(
    ("family", "words", "says"),
    [(family, *row) for family, rows in REFUSALS.items() for row in rows],
)
def test_what_a_model_cannot_use_is_refused(
    family: str, words: tuple[object, ...], says: str, models: Models, tmp_path: Path
) -> None:
    place = furnished(family, models, tmp_path)
    place.refuse("encode-video", "--model", place.model, *NINE, *words, code=2, says=says)
    run = ("run", "--model", place.model, "--prompt", "cat", *NINE, *words)
    if words:
        place.refuse(*run, code=2, says=says)


def test_a_longer_video_than_there_is_is_refused(models: Models, tmp_path: Path) -> None:
    vace = furnished("wan21-vace", models, tmp_path)
    words = ("encode-video", "--model", vace.model, *SIDES, "--video", "clip", "--num-frames", 13)
    vace.refuse(*words, code=2, says="has 9 frames at 16 per second, fewer than --num-frames 13")


def test_entries_of_other_kinds_of_models_are_refused(models: Models, tmp_path: Path) -> None:
    t2v = furnished("wan21-t2v", models, tmp_path)
    vace = Place(tmp_path, models("wan21-vace"))
    changed = encode(t2v, *NINE, "--video", "clip")
    context = encode(vace, *NINE, "--video", "clip")
    text = t2v.text()
    words = ("denoise", "--from", text, "--from")
    says = "cannot use a video that was encoded as the context of VACE"
    t2v.refuse(*words, context, "--model", t2v.model, code=2, says=says)
    says = "cannot use a video that was encoded to be changed"
    vace.refuse(*words, changed, "--model", vace.model, code=2, says=says)
    vace.refuse(*words[:3], "--model", vace.model, code=2, says="needs a context")
    both = (*words, context, "--model", vace.model, "--strength", 0.5)
    vace.refuse(*both, code=2, says="strength is for text-to-video models")
    alone = (*words[:3], "--model", t2v.model, "--strength", 0.5)
    t2v.refuse(*alone, code=2, says="no video to change is given")
    scaled = (*words, changed, "--model", t2v.model, "--context-scale", 0.5)
    t2v.refuse(*scaled, code=2, says="has no context")
    beyond = (*words, changed, "--model", t2v.model, "--strength", 0)
    t2v.refuse(*beyond, code=2, says="strength must be above 0 and at most 1")
    little = (*words, changed, "--model", t2v.model, "--strength", 0.1, "--steps", 4)
    t2v.refuse(*little, code=2, says="is less than one step; use 0.25 or more")


def test_a_video_is_not_thinned_for_a_model_with_other_sides(
    models: Models, tmp_path: Path
) -> None:
    ti2v = furnished("wan22-ti2v-5b", models, tmp_path)
    words = ("encode-video", "--model", ti2v.model, "--video", "clip", "--video-fit", "whole")
    ti2v.refuse(*words, code=2, says="gives sides that are multiples of 16; leave it out")
