"""Models that mlx-video converted become the models of the official files.

The names are made here by other rules than those that wanpipe reads them with.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.checkpoints.foreign import (
    Official,
    Tensors,
    converted,
    refused,
    renamed,
    save,
    spoilt,
    stored,
)
from tests.checkpoints.test_detect import change
from tests.workshop import Place
from wanpipe.checkpoints.detect import detect

DIT = [
    (r"^patch_embedding", "patch_embedding_proj"),
    (r"^(text|time)_embedding\.0", r"\1_embedding_0"),
    (r"^(text|time)_embedding\.2", r"\1_embedding_1"),
    (r"^time_projection\.1", "time_projection"),
    (r"\.ffn\.0", ".ffn.fc1"),
    (r"\.ffn\.2", ".ffn.fc2"),
]
UMT5 = [(r"ffn\.gate\.0", "ffn.gate_proj")]
VAE_22 = [
    (r"\.(residual|head)\.(\d)\.", r".\1.layer_\2."),
    (r"\.resample\.1\.", ".resample_"),
    (r"\.(to_qkv|proj)\.", r".\1_"),
]
# what its config.json says beside what the official one does
SETTINGS = {
    "model_version": "2.1",
    "patch_size": [1, 2, 2],
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "vae_stride": [4, 8, 8],
    "vae_z_dim": 16,
    "dual_model": False,
    "boundary": 0.0,
    "sample_shift": 5.0,
    "sample_steps": 50,
    "sample_guide_scale": 5.0,
    "num_train_timesteps": 1000,
    "sample_fps": 16,
    "frame_num": 81,
    "sample_neg_prompt": "色调艳丽",
    "max_area": 0,
    "t5_vocab_size": 401,
    "t5_dim": 64,
    "t5_dim_attn": 64,
    "t5_dim_ffn": 160,
    "t5_num_heads": 4,
    "t5_num_layers": 3,
    "t5_num_buckets": 32,
}


def write_vae(tensors: Tensors) -> Tensors:
    """Write a VAE: that of Wan2.2 has other names, and its norms have one axis."""
    nested = "decoder.upsamples.0.upsamples.0.residual.0.gamma" in tensors
    last = {
        name: (dtype, np.moveaxis(value, 1, -1) if value.ndim > 1 and "weight" in name else value)
        for name, (dtype, value) in tensors.items()
    }
    if not nested:
        return last
    flat = {
        name: (dtype, value.squeeze() if "gamma" in name else value)
        for name, (dtype, value) in last.items()
    }
    return renamed(flat, VAE_22)


def write_mlx_video(source: Path, target: Path) -> Path:
    """Write the official checkpoint `source` as mlx-video converts it, but for its dtype."""
    checkpoint = detect(source)
    for expert in checkpoint.experts:
        tensors = renamed(stored(checkpoint.files[expert]), DIT)
        dtype, patch = tensors["patch_embedding_proj.weight"]
        tensors["patch_embedding_proj.weight"] = (dtype, patch.reshape(len(patch), -1))
        save(target / f"{expert}.safetensors", tensors)
    save(target / "t5_encoder.safetensors", renamed(stored(checkpoint.files["t5_encoder"]), UMT5))
    save(target / "vae.safetensors", write_vae(stored(checkpoint.files["vae"])))
    for path in (*checkpoint.files["tokenizer"], *checkpoint.files.get("clip", ())):
        shutil.copyfile(path, target / path.name)
    settings = json.loads(checkpoint.configs[0].read_text())
    official = {name: value for name, value in settings.items() if name[0] != "_"}
    dual = {"dual_model": len(checkpoint.experts) > 1}
    (target / "config.json").write_text(json.dumps({**SETTINGS, **official, **dual}))
    return target


@pytest.fixture
def theirs(checkpoints: Path, tmp_path: Path) -> Path:
    return write_mlx_video(checkpoints / "wan21-t2v", tmp_path / "theirs")


@pytest.mark.parametrize(
    "family",
    ["wan21-t2v", "wan21-i2v", "wan22-t2v-a14b", "wan22-i2v-a14b", "wan22-ti2v-5b"],
)
def test_a_model_of_mlx_video_is_the_official_one(
    checkpoints: Path, tmp_path: Path, official: Official, family: str
) -> None:
    source = write_mlx_video(checkpoints / family, tmp_path / family)
    assert detect(source).variant == detect(checkpoints / family).variant
    assert converted(source, tmp_path / "model").components == official(family).components


def test_a_table_of_frequencies_is_left_out(
    theirs: Path, tmp_path: Path, official: Official
) -> None:
    table = {"freqs": ("F32", np.ones((1024, 16), np.float32))}
    spoilt(theirs / "model.safetensors", lambda tensors: tensors.update(table))
    assert converted(theirs, tmp_path / "model") == official("wan21-t2v")


def test_weights_that_mlx_quantized_are_refused(theirs: Path) -> None:
    def quantize(tensors: Tensors) -> None:
        name = "blocks.0.ffn.fc1"
        packed, scales, biases = mx.quantize(mx.array(tensors[f"{name}.weight"][1]), 64, 4)
        tensors[f"{name}.weight"] = ("U32", np.array(packed))
        tensors[f"{name}.scales"] = ("F32", np.array(scales))
        tensors[f"{name}.biases"] = ("F32", np.array(biases))

    spoilt(theirs / "model.safetensors", quantize)
    change(theirs / "config.json", quantization={"group_size": 64, "bits": 4})
    refused(theirs, r"is quantized by MLX \(blocks.0.ffn.fc1.scales\); use the model that it was")


def test_an_unknown_setting_is_refused(theirs: Path) -> None:
    change(theirs / "config.json", audio_dim=1024)
    refused(theirs, "config.json has unknown keys: audio_dim")


def test_a_missing_tokenizer_is_named(theirs: Path) -> None:
    (theirs / "tokenizer.json").unlink()
    refused(theirs, "holds no tokenizer.json .that of umT5")


def test_a_missing_tensor_is_named(theirs: Path) -> None:
    spoilt(theirs / "vae.safetensors", lambda tensors: tensors.pop("decoder.head.2.weight"))
    refused(theirs, "does not fit: missing tensors: output.weight")


def test_a_user_converts_a_model_of_mlx_video(theirs: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "model")
    place.do("convert", "--checkpoint-dir", "theirs", "--output-dir", "model")
    assert place.frames(place.film()).std() > 1
