"""The sweep file: what it means, and what it is refused for, before anything is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import run
from tests.sweeps.sheets import option, read, refused
from tests.workshop import Place
from wanpipe.cli.seeds import parse_seeds
from wanpipe.errors import UsageError
from wanpipe.sweeps.arguments import arguments, read_value
from wanpipe.sweeps.document import MOST, Sweep

BASE = 'model = "MODEL"\nprompt = "a cat"\n'
SMALLEST = "width = 32\nheight = 32\nnum-frames = 5\nsteps = 2\n"
AXES = 'model = "MODEL"\n[axes]\nprompt = ["a cat"]\n'


def values(sweep: Sweep, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(video[name] for name in names) for video in sweep.videos]


def test_axes_are_combined_and_the_last_one_changes_first(place: Place) -> None:
    sweep = read(place, '[axes]\nprompt = ["a", "b"]\nseed = "4-5,9"\n')
    assert sweep.varied == ("prompt", "seed")
    assert values(sweep, "prompt", "seed") == [
        (prompt, (seed,)) for prompt in ("a", "b") for seed in (4, 5, 9)
    ]


def test_what_is_zipped_goes_together_and_is_combined_with_the_rest(place: Place) -> None:
    sizes = "[[zip]]\nwidth = [32, 48]\nheight = [48, 32]\n"
    sweep = read(place, f'[axes]\nprompt = ["a", "b"]\n{sizes}')
    assert values(sweep, "prompt", "width", "height") == [
        ("a", 32, 48),
        ("a", 48, 32),
        ("b", 32, 48),
        ("b", 48, 32),
    ]


def test_prompts_come_from_a_file_beside_the_sweep_file(place: Place) -> None:
    (place.root / "prompts.txt").write_text("a cat\n\n a dog, sitting \r\n")
    sweep = read(place, '[axes]\nprompt-file = "prompts.txt"\n')
    assert values(sweep, "prompt") == [("a cat",), (" a dog, sitting ",)]


def test_one_seed_and_one_model_need_no_list(place: Place) -> None:
    [video] = read(place, 'prompt = "a cat"\n[axes]\nseed = 7\n').videos
    assert video["seed"] == (7,)
    assert video["model"] == str(place.model)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("guide-scale", [3, 4.5], (3.0, 4.5)),
        ("guide-scale", 5, (5.0,)),
        ("guide-scale", "3,4", (3.0, 4.0)),
        ("timesteps", [1000, 500], (1000.0, 500.0)),
        ("shift", 3, 3.0),
        ("lora", ["a.safetensors", 1], ((Path("/f/a.safetensors"), 1.0),)),
        ("lora", [["a.st", 0.5], ["/b.st", 1]], ((Path("/f/a.st"), 0.5), (Path("/b.st"), 1.0))),
        ("lora", [], ()),
        ("image", "../cat.png", Path("/f/../cat.png")),
        ("reference", ["a.png", "b.png"], (Path("/f/a.png"), Path("/f/b.png"))),
        ("reference", "a.png", (Path("/f/a.png"),)),
        ("keyframe", [-1, "a.png"], ((-1, Path("/f/a.png")),)),
        ("outpaint", [1, 2, 3, 4], (1, 2, 3, 4)),
        ("memory", "2GB", 2 * 10**9),
        ("exif", True, True),
        ("scheduler", "euler", "euler"),
    ],
)
def test_values_are_those_of_the_command_line_and_can_be_spelled(
    name: str, value: object, found: object
) -> None:
    asked = option(name)
    read_one = read_value(asked, value, Path("/f"))
    assert read_one == found
    words = arguments(run.command, {str(asked.name): read_one})
    parsed = run.command.make_context("run", list(words)).params
    assert parsed[str(asked.name)] == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("= 3", "it is no TOML: "),
        ("steps = 3\n", "no model is given"),
        ('model = "MODEL"\n', "no prompt is given"),
        (BASE + "stepz = 3\n", "stepz is no option that a sweep can set; did you mean steps?"),
        (BASE + "guide_scale = 3\n", "did you mean guide-scale?"),
        (BASE + 'checkpoint-dir = "x"\n', "checkpoint-dir is no option that a sweep can set"),
        (BASE + 'steps = "8"\n', "steps is invalid: Expected `int`, got `str`"),
        (BASE + "steps = 8.5\n", "steps is invalid: Expected `int`, got `float`"),
        (BASE + "steps = true\n", "steps is invalid: Expected `int`, got `bool`"),
        (BASE + "steps = [8, 9]\n", "steps is invalid: Expected `int`, got `array`"),
        (BASE + "exif = 1\n", "exif is invalid: Expected `bool`, got `int`"),
        (BASE + 'scheduler = "magic"\n', "scheduler is invalid: 'magic' is not one of"),
        (BASE + "guide-scale = nan\n", "guide-scale is invalid: must be numbers"),
        (BASE + "outpaint = [1, 2]\n", "outpaint is invalid: must be 4 integers"),
        (BASE + 'lora = ["a.st"]\n', "lora is invalid: expected a list of 2 values, got 1"),
        (BASE + "shift = 1979-05-27\n", "shift is invalid: Expected `float`, got `date`"),
        (BASE + "prompt-file = 'a.txt'\n", "prompt-file has a prompt for each video; write it"),
        (BASE + "axes = 3\n", "axes is invalid: Expected `object`, got `int`"),
        (BASE + "[axes]\nsteps = []\n", "steps has no value"),
        (BASE + "[axes]\nsteps = 3\n", "steps must be a list of values here, got 3; write [3]"),
        (BASE + "[axes]\nprompt = ['b']\n", "prompt is given twice"),
        (BASE + '[axes]\nseed = "9-1"\n', "a range of seeds must go up, got 9-1"),
        (BASE + '[axes]\nseed = "1-999999999999"\n', "at most 100000 seeds"),
        (BASE + '[axes]\nseed = "1-1000"\nshift = [' + "1," * 101 + "]\n", "got 101000; write"),
        (AXES + "[[zip]]\nwidth = [32, 64]\nheight = [32]\n", "width has 2, height has 1"),
        (AXES + "[[zip]]\n", "nothing is there"),
        (AXES + "prompt-file = 'none.txt'\n", "prompt is given twice"),
        ("model = 'MODEL'\n[axes]\nprompt-file = 'none.txt'\n", "none.txt cannot be read"),
        (
            'output = "{sede}.mp4"\n' + BASE,
            "{sede} in {sede}.mp4 is no field of a name; use {n}, {key}",
        ),
        (
            'output = "{prompt!r}.mp4"\n' + BASE,
            "{prompt!r} in {prompt!r}.mp4 cannot be filled: only numbers have",
        ),
        ('output = "{n:999}.mp4"\n' + BASE, "{n:999} in {n:999}.mp4 cannot be filled"),
        ('output = "{exif:2}.mp4"\nexif = true\n' + BASE, "only numbers have a form"),
        (BASE + "[zip]\nwidth = [32]\n", "zip must be a list of tables, got one; write [[zip]]"),
        ('output = "{n}.avi"\n' + BASE, "video 1: a video must end in .mp4, .webm, .gif"),
        ('output = "same.mp4"\n' + BASE + "[axes]\nseed = [1, 2]\n", "videos 1 and 2 would both"),
        (BASE + "num-frames = 80\n", "video 1: frames must be 4n+1, got 80; use 77 or 81"),
        (BASE + "width = 32\n[axes]\nheight = [32, 33]\n", "video 2: height must be a multiple"),
        (BASE + 'image = "cat.png"\n', "is a text-to-video model, so it takes no image"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, says: str, place: Place) -> None:
    assert says in refused(place, text)


def test_a_file_that_is_missing_or_no_text_is_refused(place: Place) -> None:
    place.refuse("sweep", "none.toml", code=2, says="none.toml: it cannot be read: No such file")
    (place.root / "bad.toml").write_bytes(b"prompt = '\xff'")
    place.refuse("sweep", "bad.toml", code=2, says="bad.toml: it cannot be read: 'utf-8' codec")
    (place.root / "deep.toml").write_text("x = " + "[" * 100_000)
    place.refuse("sweep", "deep.toml", code=2, says="deep.toml: it is no TOML: ")


def test_a_model_may_have_the_name_of_its_checkpoints_folder(
    place: Place, checkpoints: Path
) -> None:
    shutil.copytree(checkpoints / "wan21-t2v", place.root / "wan")
    model = place.made("convert", "--checkpoint-dir", "wan", "--name", "wan")
    (place.root / "sweep.toml").write_text(f'model = "wan"\nprompt = "a cat"\n{SMALLEST}')
    named = place.do("sweep", "sweep.toml", "--dry-run")
    (place.root / "sweep.toml").write_text(f'model = "{model}"\nprompt = "a cat"\n{SMALLEST}')
    assert named.paths == place.do("sweep", "sweep.toml", "--dry-run").paths


def test_a_model_that_is_not_there_is_an_error(place: Place) -> None:
    (place.root / "sweep.toml").write_text('model = "none"\nprompt = "a cat"\n')
    place.refuse("sweep", "sweep.toml", code=1, says="video 1: no model none: ")


def test_seeds_are_counted_before_they_are_listed() -> None:
    assert list(parse_seeds("3", MOST)) == [3]
    with pytest.raises(UsageError, match="at most 100000"):
        parse_seeds("1-90000,90001-180000", MOST)


def test_workers_of_this_machine_do_not_go_with_a_scheduler(place: Place) -> None:
    (place.root / "sweep.toml").write_text(f'model = "{place.model}"\nprompt = "a cat"\n')
    words = ("sweep", "sweep.toml", "--scheduler", "tcp://127.0.0.1:9", "--workers", 2)
    place.refuse(*words, code=2, says="--scheduler uses those that are connected to it; give one")
