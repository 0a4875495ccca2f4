"""bench.run makes a video with every model, and tells where its time went."""

import json
from pathlib import Path

import pytest

from bench.models import MODELS
from tests.bench.programs import small

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=() if name == "i2v-a14b" else pytest.mark.long) for name in MODELS],
)
def test_every_model_runs_at_tiny_sizes(model: str, tmp_path: Path) -> None:
    command = f"bench.run --model {model} --steps 4 --guide-scale 1 --rounds 1 --json"
    done = small(f"{command} --trace trace.json --picture time.svg", tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout.splitlines()[1])
    assert run["subject"] == "run"
    events = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert sum(span["dur"] for span in spans) == pytest.approx(1e6 * run["wall"])
    loaded = (
        {"vae", "model"} if len(MODELS[model].experts) == 1 else {"vae", *MODELS[model].experts}
    )
    loaded |= {"vae_encoder"} if MODELS[model].image else set()
    assert {span["name"] for span in spans if span["cat"] == "loading"} == {
        f"load {name}" for name in loaded
    }
    picture = (tmp_path / "time.svg").read_text("utf-8")
    assert all(f">load {name}<" in picture for name in loaded)


@pytest.mark.long
def test_the_stages_of_an_image_to_video_model_run_one_by_one(tmp_path: Path) -> None:
    done = small("bench.run --model i2v-a14b --output none --rounds 1 --json", tmp_path)
    assert done.returncode == 0, done.stderr
    subjects = [json.loads(line)["subject"] for line in done.stdout.splitlines()[1:]]
    assert subjects == ["encode-text", "encode-image", "denoise", "decode", "stages"]


def test_only_ti2v_can_do_without_an_image(tmp_path: Path) -> None:
    done = small("bench.run --model i2v-a14b --no-image", tmp_path)
    assert done.returncode == 2
    assert "--no-image is for ti2v-5b only" in done.stderr
