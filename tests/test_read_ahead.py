"""Networks that are read while the one before computes: when, in which order, with which bits."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import convert
from tests.workshop import SMALL, Models, Place
from wanpipe.demo import CHECKPOINTS
from wanpipe.denoising import start
from wanpipe.denoising.denoiser import Denoiser
from wanpipe.models.dit import DiT
from wanpipe.store import Store
from wanpipe.weights import load

EXPERTS = ("high_noise_model", "low_noise_model")
WORDS = (*SMALL, "--steps", 4, "--shift", 5)
# runs a command that gets a signal in the first pass, while its last block is read without an end
ENDLESS = """
import os, signal, threading, time
from wanpipe.__main__ import main
from wanpipe.models.dit import DiT
from wanpipe.weights.load import Weights

started, begin, original = threading.Event(), DiT.embed_time, Weights.through_mlx

def noting(self, timesteps):
    started.set()
    return begin(self, timesteps)

def endless(self, names):
    for name, array in original(self, names):
        yield name, array
        if name.startswith("blocks.1."):
            started.wait()
            os.kill(os.getpid(), signal.SIGINT)
        while name.startswith("blocks.1."):
            time.sleep(0.01)
            yield "more", array

DiT.embed_time, Weights.through_mlx = noting, endless
main()
"""


@pytest.fixture
def two_experts(models: Models, tmp_path: Path) -> Place:
    """A place with a model of two experts."""
    return Place(tmp_path, models("wan22-t2v-a14b"))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read ahead, in order."""
    read: list[str] = []
    original: Callable[..., Any] = load.read_whole

    def noting(path: Path, *rest: Any) -> Any:
        read.append(path.stem)
        return original(path, *rest)

    monkeypatch.setattr(load, "read_whole", noting)
    return read


def forecasts(place: Place, *words: object) -> dict[str, dict[str, Any]]:
    """What a plan tells of each network."""
    plan = place.do("denoise", *words, "--dry-run")
    return {event["component"]: event for event in plan.events if event["event"] == "forecast"}


def test_every_whole_network_is_read_ahead_once(two_experts: Place, ahead: list[str]) -> None:
    result = two_experts.film(*WORDS, "--seed", "1-2", "--output", "{seed}.mp4")
    assert ahead == [*EXPERTS, "vae"]
    loaded = [event["component"] for event in result.events if event["event"] == "loaded"]
    assert loaded == [*EXPERTS, "vae"]


def test_the_network_is_loaded_while_the_start_noise_is_drawn(
    two_experts: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, waited = threading.Event(), []
    load_expert, draw = Denoiser.load, start.draw

    def loading(self: Denoiser, name: str) -> DiT:
        network = load_expert(self, name)
        loaded.set()
        return network

    def drawing(*given: Any) -> np.ndarray:
        waited.append(loaded.wait(60))
        return draw(*given)

    monkeypatch.setattr(Denoiser, "load", loading)
    monkeypatch.setattr(start, "draw", drawing)
    two_experts.do("denoise", "--from", two_experts.text(), *WORDS, "--seed", 1)
    assert waited == [True]


def test_nothing_is_read_ahead_beyond_the_memory_and_the_bits_are_the_same(
    two_experts: Place, ahead: list[str]
) -> None:
    words = ("--from", two_experts.text(), *WORDS)
    told = forecasts(two_experts, *words)
    high, low = (told[name] for name in EXPERTS)
    assert high["ahead_bytes"] >= (two_experts.model / f"{EXPERTS[1]}.safetensors").stat().st_size
    assert "ahead_bytes" not in low
    latents = []
    for less, read in ((0, list(EXPERTS)), (1, [EXPERTS[0]])):
        memory = high["peak_bytes"] + high["ahead_bytes"] - less
        assert memory >= low["peak_bytes"]
        limited = (*words, "--memory", memory, "--force")
        assert ("ahead_bytes" in forecasts(two_experts, *limited)[EXPERTS[0]]) == (less == 0)
        ahead.clear()
        latents.append(two_experts.entry(two_experts.made("denoise", *limited)).read("latent"))
        assert ahead == read
    assert np.array_equal(*latents)


def test_a_streamed_network_is_not_read_ahead(tmp_path: Path, ahead: list[str]) -> None:
    params = convert.Params(checkpoint_dir=CHECKPOINTS / "t2v", output_dir=tmp_path / "model")
    place = Place(tmp_path, convert.run(params, Store(tmp_path / "cache")))
    words = ("--from", place.text(), *SMALL, "--steps", 2, "--guide-scale", 1)
    memory = forecasts(place, *words)["model"]["peak_bytes"]
    place.do("denoise", *words, "--memory", memory)
    assert ahead == ["model"]
    result = place.do("denoise", *words, "--memory", memory - 1, "--force")
    [line] = [event["text"] for event in result.events if event["event"] == "memory"]
    assert "its blocks are read from disk" in line
    assert ahead == ["model"]


def test_the_bits_are_those_of_the_stages_one_by_one(two_experts: Place, ahead: list[str]) -> None:
    whole = two_experts.film(*WORDS)
    latent = two_experts.entry(two_experts.root / whole.computed("denoise")[-1]["path"])
    text = two_experts.text()
    alone = two_experts.made("denoise", "--from", text, *WORDS, "--force", "--name", "alone")
    assert np.array_equal(latent.read("latent"), two_experts.entry(alone).read("latent"))


@pytest.mark.parametrize("words", [(), ("--devices", 2)])
def test_a_signal_in_the_first_pass_ends_the_process(
    two_experts: Place, words: tuple[object, ...]
) -> None:
    arguments = ("denoise", "--from", two_experts.text(), *WORDS, *words)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, *map(str, arguments)],
        cwd=two_experts.root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted; run the same command again to resume" in done.stderr
