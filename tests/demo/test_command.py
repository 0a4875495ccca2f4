"""`wanpipe demo`: videos from an empty directory, and remarks about the prompt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.train_demo import judge
from tests.workshop import Place
from wanpipe import demo
from wanpipe.demo.examples import EXAMPLES
from wanpipe.media.video import read_video
from wanpipe.sweeps.local import THREADS


def remarks(place: Place, prompt: str) -> list[str]:
    result = place.do("demo", prompt, "--dry-run")
    return [event["text"] for event in result.events if event["event"] == "remark"]


@pytest.mark.slow
def test_demo_writes_a_video_and_a_sheet_and_reuses_them(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path, demo.T2V)
    first = place.do("demo", "a red circle moves right on a white background", "--seed", 3)
    stem = "demo/a-red-circle-moves-right-on-a-white-background"
    assert first.paths == [f"{stem}.mp4", f"{stem}.png"]
    assert read_video(tmp_path / first.paths[0])[0].shape == (17, 96, 96, 3)
    with Image.open(tmp_path / first.paths[1]) as sheet:
        assert sheet.width < 700
    again = place.do("demo", "a red circle moves right on a white background", "--seed", 3)
    assert again.paths == first.paths
    assert again.computed() == again.loaded() == []
    reused = [event["stage"] for event in again.events if event["event"] == "reused"]
    assert reused == ["convert", "encode-text", "denoise", "decode", "film"]


def test_an_unknown_word_gets_a_remark_that_lists_the_vocabulary(tmp_path: Path) -> None:
    [said] = remarks(Place(tmp_path, demo.T2V), "a green cat moves left")
    assert said.startswith("the tiny model never saw cat, so the video shows something else; ")
    assert "shapes: circle, square, triangle, star; colors: red, " in said


def test_a_prompt_without_a_color_gets_a_remark(tmp_path: Path) -> None:
    [said] = remarks(Place(tmp_path, demo.T2V), "a circle moves left")
    assert said.startswith("the prompt names no color, so the model chooses; ")


def test_a_prompt_within_the_vocabulary_gets_no_remark(tmp_path: Path) -> None:
    assert remarks(Place(tmp_path, demo.T2V), "The golden disc rises gently, over black.") == []


# what the videos of the examples show: shape, color, motion
SHOWN = {
    "text": ("circle", "red", "right"),
    "last-image": ("circle", "red", "right"),
    "continue": ("circle", "red", "right"),
    "inpaint": ("square", "blue", "right"),
    "outpaint": ("star", "yellow", "still"),
    "reference": ("square", "green", "left"),
    "control": ("triangle", "pink", "up"),
    "change": ("circle", "blue", "right"),
}


# one example for every change; all of them with `make long`
SHORT = "text"


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [pytest.param(one, marks=[] if one == SHORT else pytest.mark.long) for one in EXAMPLES],
)
def test_an_example_shows_what_its_inputs_and_prompt_say(what: str, tmp_path: Path) -> None:
    place = Place(tmp_path, demo.T2V)
    made = place.do("demo", "--what", what)
    assert not [event for event in made.events if event["event"] == "remark"]
    looked = judge.look(place.frames(made))
    assert (looked.shape, looked.color, looked.motion) == SHOWN[what]
    again = place.do("demo", "--what", what)
    assert again.computed() == again.loaded() == []
    assert again.paths == made.paths
    with Image.open(tmp_path / made.paths[-1]) as sheet:
        assert sheet.height > 100 * (1 + len(EXAMPLES[what].draw(tmp_path).rows))


def test_a_plan_of_an_example_writes_no_file(tmp_path: Path) -> None:
    place = Place(tmp_path, demo.T2V)
    place.do("demo", "--what", "control", "--dry-run")
    assert not (tmp_path / "demo").exists()


def test_one_blas_thread_is_chosen_before_numpy_loads(tmp_path: Path) -> None:
    program = """
import os, sys
from stages import demo
from wanpipe.app import main
demo.make_videos = lambda *given: [os.environ["OPENBLAS_NUM_THREADS"], "numpy" in sys.modules]
main(["demo", "a red circle moves left"])
"""
    environment = {name: os.environ[name] for name in os.environ if name not in THREADS}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "False"], done.stderr


def test_an_empty_prompt_is_rejected(tmp_path: Path) -> None:
    place = Place(tmp_path, demo.T2V)
    place.refuse("demo", " ", code=2, says="a prompt must say something, got none; try ")
