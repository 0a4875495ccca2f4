"""Commands that make a run again: each word reaches the program as it is, whatever is in it."""

import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.builders import HASH, SETTINGS
from wanpipe.cache.gallery.remake import quote, remake_command
from wanpipe.runtime.documents import convert
from wanpipe.store import Run, Store
from wanpipe.store.runs import with_key

HOSTILE = (
    "costs $5 `touch made` $(touch made)",
    'it\'s "quoted" \\ back; a & b | c > made',
    "two\nlines\r\nand a tab\t",
    "\x1b[201~ends a paste\x1b]0;title\x07",
    "turned \u202e around \u200b\U000e0001",
    "-- --help",
    "a red 円 \N{PERSON DOING CARTWHEEL}\u200d\N{MALE SIGN}",
    "\x7f0 octal digits follow",
    "",
)


def run_of(**changes: Any) -> Run:
    """A run of a text with these fields changed."""
    fields = {
        "key": HASH(0),
        "start": {"algorithm": "n", "shape": [4, 2, 3, 5], "seed": 7},
        "steps": [HASH(1), HASH(2)],
        "inputs": {"text": HASH(3)},
        "settings": SETTINGS | changes.pop("settings", {}),
        "dtype": "float32",
        "model": {"key": HASH(9), "directory": "/models/a model"},
        "seed": 7,
        "prompt": "a cat",
        "negative_prompt": "",
        "fps": 16.0,
    }
    return with_key(convert(fields | changes, Run))


def command_of(run: Run) -> str | None:
    return remake_command(run, Store("/a cache"))


def words(text: str) -> list[str]:
    """The words that a shell makes of a text."""
    script = f"printf '%s\\0' {text}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_shell_reads_a_word_as_it_was(word: str) -> None:
    assert words(quote(word)) == [word]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))))
def test_any_word_survives_the_shell(word: str) -> None:
    assert words(quote(word)) == [word]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_pasted_command_has_no_control_character(word: str) -> None:
    command = command_of(run_of(prompt=word or "x"))
    assert command is not None
    assert command.replace("\n", "").isprintable()


def test_the_command_of_a_text_has_all_options() -> None:
    settings = {"guide_scale": [3.5, 5.0], "timesteps": [1000.0, 500.5], "strength": 0.7}
    settings |= {"trim_first_frames": 1, "step_cache": 0.05}
    command = command_of(run_of(settings=settings))
    assert command is not None
    run, *lines = command.split(" \\\n  ")
    assert run == "wanpipe run"
    assert lines == [
        "--cache '/a cache'",
        "--model '/models/a model'",
        "--prompt 'a cat'",
        "--no-negative-prompt",
        "--seed 7",
        "--width 832",
        "--height 480",
        "--num-frames 81",
        "--steps 8",
        "--shift 5",
        "--scheduler unipc",
        "--timesteps 1000,500.5",
        "--trim-first-frames 1",
        "--strength 0.7",
        "--guide-scale 3.5,5",
        "--step-cache 0.05",
        f"--output run-{run_of(settings=settings).key[:8]}.mp4",
    ]


def test_a_run_of_an_image_or_a_branch_names_its_entries() -> None:
    image = command_of(run_of(inputs={"text": HASH(3), "image": HASH(4)}))
    assert image is not None
    assert image.startswith("step=$(wanpipe denoise \\\n")
    assert f"--from {HASH(3)} \\\n  --from {HASH(4)} \\\n  --seed 7" in image
    assert image.endswith(' --from "$step"')
    branch = command_of(run_of(start=HASH(5), first=2))
    assert branch is not None
    assert f"--from {HASH(5)} \\\n  --from {HASH(3)} \\\n  --guide-scale 5)" in branch
    assert "--seed" not in branch
    assert "--width" not in branch


def test_loras_are_given_as_they_were() -> None:
    loras = [
        {"name": "a", "hash": HASH(21), "strength": 0.5},
        {"name": "b", "hash": HASH(22), "strength": 1.0, "expert": "high_noise_model"},
        {"name": "c", "hash": HASH(23), "strength": 1, "expert": "low_noise_model", "half": True},
        {"name": "c", "hash": HASH(24), "strength": 1, "expert": "high_noise_model", "half": True},
    ]
    paths = {HASH(21): "/l/a b", HASH(22): "/l/b", HASH(23): "/l/c", HASH(24): "/l/c"}
    command = command_of(run_of(settings={"loras": loras}, loras=paths))
    assert command is not None
    assert "--lora '/l/a b' 0.5 \\\n  --lora-high /l/b 1 \\\n  --lora /l/c 1 \\\n" in command
    assert command.count("/l/c") == 1


def test_what_the_cache_does_not_know_has_no_command() -> None:
    noise = {"algorithm": "given", "shape": [4, 2, 3, 5], "digest": HASH(8)}
    assert command_of(run_of(start=noise, seed=None)) is None
    lora = {"name": "a", "hash": HASH(21), "strength": 0.5}
    assert command_of(run_of(settings={"loras": [lora]})) is None


def test_another_frame_rate_than_the_models_is_kept() -> None:
    video = {"path": "/v.mp4", "frames": HASH(6), "fps": 8.0}
    command = command_of(run_of(videos=[video]))
    assert command is not None
    assert command.endswith(".mp4 \\\n  --fps 8")
