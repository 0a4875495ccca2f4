"""Names of videos: templates, and what values become in them."""

from pathlib import Path

import pytest

from wanpipe.errors import UsageError
from wanpipe.media.names import MAX_NAME_BYTES
from wanpipe.sweeps.names import name_videos

FOLDER = Path("/films")
LONG = {"prompt": "猫" * 90, "image": Path("x" * 90), "last_image": Path("y" * 90)}


def name(template: str, **values: object) -> str:
    """The name of one video, whose options have these values."""
    given = {name.replace("_", "-"): value for name, value in values.items()}
    asked = {"model": "/models/Wan2.1-T2V-1.3B", "prompt": "A cat: plays", **given}
    [path] = name_videos(template, FOLDER, [asked], ["3f9c2ab1"])
    return str(path.relative_to(FOLDER))


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{prompt}-{key}.mp4", "a-cat-plays-3f9c2ab1.mp4"),
        ("{model}/{seed:03}.mp4", "Wan2.1-T2V-1.3B/007.mp4"),
        ("{n}-{guide-scale}-{shift}.webm", "1-3-4.5-5.webm"),
        ("{lora}.gif", "style-0.8.gif"),
        ("{image}{exif}", "catyes"),
        ("{negative-prompt}.mp4", "none.mp4"),
        ("a/../{n}.mp4", "1.mp4"),
    ],
)
def test_values_become_parts_of_names(template: str, found: str) -> None:
    given = {
        "seed": (7,),
        "guide_scale": (3.0, 4.5),
        "shift": 5.0,
        "lora": ((Path("/x/style.safetensors"), 0.8),),
        "image": Path("cat.png"),
        "exif": True,
        "negative_prompt": "../..",
    }
    assert name(template, **given) == found


def test_no_value_leads_out_of_the_folder() -> None:
    assert name("{negative-prompt}/x.mp4", negative_prompt="../../etc") == "etc/x.mp4"


def test_a_prompt_is_cut_to_the_room_that_other_values_leave() -> None:
    made = name("{prompt}-{image}-{last-image}.mp4", **LONG)
    assert made.endswith(f"-{'x' * 60}-{'y' * 60}.mp4")
    assert len(made.encode()) <= MAX_NAME_BYTES


def test_two_videos_of_one_name_are_an_error() -> None:
    videos = [{"model": "m", "prompt": text} for text in ("a cat!", "a cat?")]
    with pytest.raises(UsageError, match="videos 1 and 2 would both be a-cat"):
        name_videos("{prompt}.mp4", FOLDER, videos, ["1", "2"])
    assert len(name_videos("{prompt}-{key}.mp4", FOLDER, videos, ["1", "2"])) == 2
