"""One video on several devices: processes with MLX's ring on this host, against one process."""

import json
import lzma
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import wanpipe
from tests.conftest import DATA
from tests.groups import alone, close, last_step, launched, run_of, same, together
from tests.workshop import SMALL, Models, Place, inside
from wanpipe.backend.device import is_gpu
from wanpipe.store import Store

pytestmark = pytest.mark.skipif(is_gpu(), reason="several processes on one GPU are no test of it")
# OpenBLAS rounds otherwise where a device has other rows of a product; guidance makes that larger
EVEN = ("--width", 128, "--height", 96, "--num-frames", 9, "--guide-scale", 2)
IMAGE = ("--image", "image.png", "--fit", "cover")
STYLE = "a_lightning_down_up_alpha.safetensors"
NAG_AND_LCM = (*IMAGE, "--guide-scale", 1, "--nag", 11, "--scheduler", "lcm")
LONG = pytest.mark.long


@pytest.fixture
def another(place: Place, tmp_path: Path) -> Place:
    """A second folder with the same model."""
    root = tmp_path / "another"
    root.mkdir()
    return Place(root, place.model)


def furnished(family: str, models: Models, tmp_path: Path) -> list[Place]:
    """Two folders with a tiny model, an image and a LoRA for the tiny Wan2.1 T2V."""
    places = [Place(tmp_path / name, models(family)) for name in ("one", "several")]
    for place in places:
        place.root.mkdir()
        Image.new("RGB", (40, 24), (200, 80, 20)).save(place.root / "image.png")
        packed = DATA / "expected/wan21-t2v/lora_files" / f"{STYLE}.xz"
        (place.root / STYLE).write_bytes(lzma.decompress(packed.read_bytes()))
    return places


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("wan21-t2v", ("--lora", STYLE, 0.5)),
        ("wan22-t2v-a14b", ()),
        # its networks attend to the tokens of CLIP
        pytest.param("wan21-i2v", IMAGE, marks=LONG),
        pytest.param("wan21-vace", (), marks=LONG),
        pytest.param("wan21-t2v", ("--nag", 11), marks=LONG),
    ],
)
def test_two_devices_make_the_steps_of_one(
    family: str, options: tuple[object, ...], models: Models, tmp_path: Path
) -> None:
    one, two = furnished(family, models, tmp_path)
    ours, theirs = together(two, 2, *options), alone(one, *options)
    assert same(ours, theirs)
    assert [step.made.devices for step in (ours[-1], theirs[-1])] == [2, 1]


@pytest.mark.parametrize(
    ("devices", "family", "options"),
    [
        # 8 tokens: the last device has two, and one of zeros
        (3, "wan21-t2v", ("--guide-scale", 2, "--lora", STYLE, 0.5)),
        (2, "wan21-t2v", ("--guide-scale", 1)),
        (2, "wan22-ti2v-5b", ("--guide-scale", 1)),
        pytest.param(3, "wan21-t2v", EVEN, marks=LONG),
        pytest.param(4, "wan21-t2v", EVEN, marks=LONG),
        # two guidance passes, each shared by two or four devices; then one pass
        pytest.param(4, "wan21-t2v", ("--guide-scale", 2), marks=LONG),
        pytest.param(8, "wan21-t2v", ("--guide-scale", 2), marks=LONG),
        pytest.param(8, "wan21-t2v", ("--guide-scale", 1), marks=LONG),
        pytest.param(8, "wan22-ti2v-5b", ("--guide-scale", 1), marks=LONG),
        pytest.param(3, "wan21-i2v", (*IMAGE, "--guide-scale", 2), marks=LONG),
        pytest.param(3, "wan21-i2v", NAG_AND_LCM, marks=LONG),
        pytest.param(3, "wan22-t2v-a14b", EVEN, marks=LONG),
        pytest.param(3, "wan22-ti2v-5b", (*IMAGE, "--guide-scale", 2), marks=LONG),
        pytest.param(3, "wan21-vace", EVEN, marks=LONG),
    ],
)
def test_devices_that_share_tokens_make_the_same_steps(
    devices: int, family: str, options: tuple[object, ...], models: Models, tmp_path: Path
) -> None:
    one, several = furnished(family, models, tmp_path)
    assert close(together(several, devices, *options), alone(one, *options))


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=LONG)])
def test_devices_stream_the_blocks_of_a_quantized_model(
    devices: int, place: Place, another: Place
) -> None:
    words = ("--from-model", place.model, "--quantize", "--group-size", 32, "--output-dir", "small")
    small = Place(place.root, place.made("convert", *words))
    chosen = ("--from", small.text(), *SMALL, "--guide-scale", 2, "--devices", devices)
    command = ("denoise", "--model", small.model, *chosen)
    refused = inside(*command, "--memory", "1kB", cwd=small.root)
    least = re.search(r"model needs (\d+) kB", refused.stderr)
    assert least, refused.stderr
    result = wanpipe(*command, "--memory", f"{int(least[1]) + 1}kB", cwd=small.root)
    assert result.code == 0, result.stderr
    [line] = [event["text"] for event in result.events if event["event"] == "memory"]
    assert line.startswith("model: its blocks are read from disk at every step"), line
    whole = alone(Place(another.root, small.model), "--guide-scale", 2)
    assert close(small.chain(result.paths[-1]), whole)


def test_devices_take_the_prompts_of_one_command(models: Models, tmp_path: Path) -> None:
    one, two = furnished("wan22-t2v-a14b", models, tmp_path)
    more = ("--prompt", "a dog sings a longer song", "--seed", "1-2")  # beside the small film's
    result = wanpipe(*run_of(two, "--devices", 2, *more), cwd=two.root)
    assert result.code == 0, result.stderr
    assert result.loaded() == ["high_noise_model", "low_noise_model", "vae"]
    alone(one, *more)
    runs = Store(one.cache).runs.all()
    assert len(runs) == 4
    chains = (
        [place.chain(place.cache / "denoise" / run.last) for run in runs] for place in (one, two)
    )
    assert all(same(theirs, ours) for theirs, ours in zip(*chains, strict=True))


def test_a_run_goes_on_with_another_number_of_devices(place: Place, another: Place) -> None:
    whole = alone(another)
    text = place.text()
    for stop, devices in ((1, 1), (3, 2), (4, 1)):
        chosen = ("--from", text, *SMALL, "--stop-at", stop, "--devices", devices)
        result = wanpipe("denoise", "--model", place.model, *chosen, cwd=place.root)
        assert result.code == 0, result.stderr
    steps = place.chain(result.paths[-1])
    assert same(steps, whole)
    assert [step.made.devices for step in steps] == [1, 2, 2, 1]
    shown = inside("show", steps[1].path, cwd=place.root)
    assert " on 2 × cpu " in " ".join(shown.paths)


def test_every_rank_of_mlx_launch_runs_the_same_command(place: Place, another: Place) -> None:
    with launched(place, *run_of(place)) as ranks:
        out, err = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 0, err
        assert out == "film.mp4\n"
        assert ranks[1].communicate(timeout=60) == ("", "")
        assert ranks[1].returncode == 0
    events = [json.loads(line) for line in err.splitlines()]
    assert same(place.chain(last_step(events)), alone(another))
