"""Runs of VACE: two experts, less memory, LoRAs, quantized weights, and a scale of 0."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.test_encode_video import NINE, STEPS, denoise, encode, furnished
from tests.workshop import Models, Place

DIT = "diffusion_pytorch_model.safetensors"
WORDS = ("--video", "clip", "--mask", "right.png", "--reference", "wide.png")


@pytest.fixture
def vace(models: Models, tmp_path: Path) -> Place:
    return furnished("wan21-vace", models, tmp_path)


def latent(place: Place, step: Path) -> np.ndarray:
    return place.entry(step).read("latent")


def read(path: Path) -> dict[str, mx.array]:
    """The tensors of a file, which may be bfloat16."""
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    return tensors


def two_experts(checkpoints: Path, root: Path) -> Path:
    """A checkpoint with two experts of VACE: of the low one, the last matrix is halved."""
    folder = root / "VACE-Fun-A14B"
    shutil.copytree(checkpoints / "wan21-vace", folder, ignore=shutil.ignore_patterns(DIT))
    for expert in ("low_noise_model", "high_noise_model"):
        (folder / expert).mkdir()
        shutil.copyfile(folder / "config.json", folder / expert / "config.json")
        tensors = read(checkpoints / "wan21-vace" / DIT)
        if expert == "low_noise_model":
            tensors["head.head.weight"] = tensors["head.head.weight"] / 2
        mx.save_safetensors(str(folder / expert / DIT), tensors)
    (folder / "config.json").unlink()
    return folder


def test_two_experts_of_vace_take_their_steps(
    checkpoints: Path, vace: Place, tmp_path: Path
) -> None:
    source = two_experts(checkpoints, tmp_path)
    words = ("--checkpoint-dir", source, "--dtype", "float32", "--output-dir", "two")
    two = Place(vace.root, vace.made("convert", *words))
    assert json.loads((two.model / "config.json").read_bytes())["variant"] == "wan2.2-vace-fun-a14b"
    video = encode(two, *NINE, *WORDS)
    same = denoise(vace, video, *STEPS, "--shift", 5, "--guide-scale", 4)
    both = denoise(two, video, *STEPS, "--shift", 5, "--guide-scale", 4)
    ours, theirs = two.chain(both), vace.chain(same)
    experts = [step.material.expert for step in ours]
    high = experts.count(experts[0])
    assert 0 < high < len(experts)
    for step, other in zip(ours[:high], theirs, strict=False):
        assert step.key == other.key or np.array_equal(step.read("latent"), other.read("latent"))
    assert not np.array_equal(ours[high].read("latent"), theirs[high].read("latent"))


def test_less_memory_gives_the_same_bits(vace: Place) -> None:
    video = encode(vace, *NINE, *WORDS)
    words = ("denoise", "--model", vace.model, "--from", vace.text(), "--from", video, *STEPS)
    plan = vace.do(*words, "--dry-run").events
    [peak] = [
        event["peak_bytes"]
        for event in plan
        if event.get("stage") == "denoise" and "peak_bytes" in event
    ]
    whole = latent(vace, vace.made(*words))
    less = vace.do(*words, "--force", "--memory", peak - 1)
    assert [event["text"] for event in less.events if event["event"] == "memory"]
    assert np.array_equal(latent(vace, vace.root / less.paths[-1]), whole)


def test_a_lora_changes_the_blocks_of_vace(vace: Place) -> None:
    dice = np.random.Generator(np.random.Philox(6))
    name = "diffusion_model.vace_blocks.1.after_proj"
    width = 64
    halves = {
        f"{name}.lora_{side}.weight": shape
        for side, shape in (("A", (2, width)), ("B", (width, 2)))
    }
    tensors = {
        path: dice.standard_normal(shape).astype(np.float32) for path, shape in halves.items()
    }
    save_file(tensors, vace.root / "style.safetensors")
    video = encode(vace, *NINE, *WORDS)
    plain = latent(vace, denoise(vace, video, *STEPS))
    styled = latent(vace, denoise(vace, video, *STEPS, "--lora", "style.safetensors", 1))
    ignored = denoise(vace, video, *STEPS, "--lora", "style.safetensors", 1, "--context-scale", 0)
    without = denoise(vace, video, *STEPS, "--context-scale", 0)
    assert not np.array_equal(plain, styled)
    assert np.array_equal(latent(vace, ignored), latent(vace, without))


def test_a_context_scale_of_0_is_text_to_video(checkpoints: Path, vace: Place) -> None:
    """The rest of the network is that of text-to-video, so hints of weight 0 leave it."""
    tensors = read(checkpoints / "wan21-vace" / DIT)
    base = {name: value for name, value in tensors.items() if "vace" not in name}
    folder = vace.root / "base"
    shutil.copytree(checkpoints / "wan21-vace", folder, ignore=shutil.ignore_patterns(DIT))
    mx.save_safetensors(str(folder / DIT), base)
    config = json.loads((folder / "config.json").read_bytes())
    plain = {name: value for name, value in config.items() if "vace" not in name}
    (folder / "config.json").write_text(json.dumps(plain | {"model_type": "t2v"}))
    words = ("--checkpoint-dir", folder, "--dtype", "float32", "--output-dir", "t2v")
    t2v = Place(vace.root, vace.made("convert", *words))
    options = ("--shift", 5, *STEPS)
    text = vace.text()
    video = encode(vace, *NINE, "--video", "clip")
    zero = ("--from", text, "--from", video, "--context-scale", 0, *options)
    ours = latent(vace, vace.made("denoise", "--model", vace.model, *zero))
    theirs = latent(t2v, t2v.made("denoise", "--model", t2v.model, "--from", text, *NINE, *options))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_vace_makes_nearly_the_same(bits: int, vace: Place) -> None:
    words = ("--from-model", vace.model, "--quantize", "--bits", bits, "--group-size", 32)
    small = Place(vace.root, vace.made("convert", *words))
    video = encode(vace, *NINE, *WORDS)
    exact = latent(vace, denoise(vace, video, *STEPS))
    rounded = latent(small, denoise(small, video, *STEPS))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < {4: 0.5, 8: 0.05}[bits]
