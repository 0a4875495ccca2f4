"""Checkpoints in folders of diffusers and ComfyUI: what is found, and what is named as missing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.foreign import (
    Official,
    Tensors,
    converted,
    refused,
    save,
    spoilt,
    stored,
    write_comfy,
)
from tests.checkpoints.test_detect import change
from wanpipe.checkpoints.detect import detect


def test_heads_have_128_where_no_config_says_otherwise(comfy: Path) -> None:
    (comfy / "config.json").unlink()
    refused(comfy, "width 64, which does not split into heads of 128; put the config.json")
    key = "model.diffusion_model.patch_embedding.weight"
    wide = {key: ("F32", np.zeros((384, 16, 1, 2, 2), "<f4"))}
    spoilt(comfy / "diffusion_models" / "wan.safetensors", lambda tensors: tensors.update(wide))
    assert detect(comfy).dit.heads == 3
    assert detect(comfy).configs == ()


def test_the_boundary_of_the_pipeline_counts(diffusers: Path) -> None:
    change(diffusers / "model_index.json", boundary_ratio=0.8)
    assert detect(diffusers).variant.defaults.boundary == 0.8
    assert "model_index.json" in detect(diffusers).sources
    change(diffusers / "model_index.json", boundary_ratio="high")
    refused(diffusers, "boundary_ratio")


@pytest.mark.parametrize("left", ["transformer_2", "boundary"])
def test_a_second_transformer_is_not_overlooked(diffusers: Path, left: str) -> None:
    change(diffusers / "model_index.json", transformer_2=None)
    if left == "boundary":
        shutil.rmtree(diffusers / "transformer_2")
    refused(diffusers, "names no transformer_2")


def test_the_transformer_of_diffusers_has_the_high_noise(
    diffusers: Path, tmp_path: Path, official: Official
) -> None:
    high = diffusers / "transformer"
    high.rename(tmp_path / "aside")
    (diffusers / "transformer_2").rename(high)
    (tmp_path / "aside").rename(diffusers / "transformer_2")
    swapped = converted(diffusers, tmp_path / "swapped").components
    ours = official("wan22-t2v-a14b").components
    assert swapped["low_noise_model"].hash == ours["high_noise_model"].hash
    assert swapped["high_noise_model"].hash == ours["low_noise_model"].hash


def test_another_pipeline_is_refused(diffusers: Path) -> None:
    change(diffusers / "model_index.json", _class_name="WanAnimatePipeline")
    refused(diffusers, "_class_name must be one of WanPipeline.* got WanAnimatePipeline")


def test_settings_that_are_no_file_or_too_large_are_refused(comfy: Path) -> None:
    path = comfy / "config.json"
    path.write_bytes(b" " * (1 << 24) + b"{}")
    refused(comfy, "config.json is not a JSON object: it is larger than 16777216 bytes")
    path.write_text("[]")
    refused(comfy, "config.json is not a JSON object: Expected `object`, got `array`")


@pytest.mark.parametrize("file", ["high_noise_model/config.json", "low_noise_model/config.json"])
def test_a_named_pipe_is_not_waited_for(checkpoints: Path, tmp_path: Path, file: str) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoints / "wan22-t2v-a14b", checkpoint, copy_function=os.link)
    (checkpoint / file).unlink()
    os.mkfifo(checkpoint / file)  # nobody writes
    refused(checkpoint, "config.json is not a JSON object: it is not a regular file")


def test_two_files_for_one_network_are_refused(comfy: Path) -> None:
    shutil.copyfile(comfy / "vae" / "wan_vae.safetensors", comfy / "other.safetensors")
    refused(comfy, "more than one VAE of Wan2.1: .*other.safetensors")


def test_the_vae_that_fits_is_taken_of_two(
    comfy: Path, checkpoints: Path, tmp_path: Path, official: Official
) -> None:
    other = detect(checkpoints / "wan22-ti2v-5b").files["vae"]
    save(comfy / "vae" / "wan2.2_vae.safetensors", stored(other))
    save(
        comfy / "loras" / "some.safetensors", {"x.lora_up.weight": ("F32", np.zeros((1, 1), "<f4"))}
    )
    assert converted(comfy, tmp_path / "after") == official("wan21-t2v")


def test_experts_without_their_noise_in_the_name_are_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    source = write_comfy(checkpoints / "wan22-t2v-a14b", tmp_path / "source")
    folder = source / "diffusion_models"
    (folder / "wan_high_noise.safetensors").rename(folder / "wan_flow.safetensors")
    refused(source, "holds two transformers, .* let the one be called high_noise")
    (folder / "wan_flow.safetensors").unlink()
    refused(source, "holds one expert of two, diffusion_models/wan_low_noise.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors",
        "Wan2.2-I2V-A14B-HighNoise.safetensors",
        "wan2.2_t2v_high_noise_14B_fp16.safetensors",
        "wan22_low.safetensors",
    ],
)
def test_one_expert_alone_is_refused(comfy: Path, name: str) -> None:
    path = comfy / "diffusion_models" / "wan.safetensors"
    path.rename(path.with_name(name))
    refused(comfy, "holds one expert of two, .*; put the other beside it")


@pytest.mark.parametrize(
    "name", ["wan2.1_t2v_low_vram.safetensors", "highres.safetensors", "wan2.2_5B_low.safetensors"]
)
def test_other_words_make_no_expert(comfy: Path, name: str) -> None:
    path = comfy / "diffusion_models" / "wan.safetensors"
    path.rename(path.with_name(name))
    assert detect(comfy).variant.name == "wan2.1-t2v-1.3b"


def test_a_file_is_not_a_folder(comfy: Path) -> None:
    refused(comfy / "tokenizer.json", "is a file; give the folder that holds the checkpoint")


def test_hidden_files_are_left_out(
    comfy: Path, diffusers: Path, checkpoints: Path, tmp_path: Path
) -> None:
    official = tmp_path / "official"
    shutil.copytree(checkpoints / "wan21-t2v", official, copy_function=os.link)
    shards = tmp_path / "shards"
    shutil.copytree(checkpoints / "wan22-t2v-a14b", shards, copy_function=os.link)
    for folder in (comfy, diffusers, official, shards):
        before = detect(folder)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 what macOS leaves")
            path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / ".cache").mkdir()
        (folder / ".cache" / "old.safetensors").write_bytes(b"half a download")
        assert detect(folder) == before


def test_a_converted_model_is_not_a_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    converted(checkpoints / "wan21-t2v", tmp_path / "model")
    refused(tmp_path / "model", "converted already; give it to --model")


def test_a_text_encoder_of_another_kind_is_not_taken(comfy: Path) -> None:
    path = comfy / "text_encoders" / "umt5_xxl.safetensors"
    table = "SelfAttention.relative_attention_bias.weight"

    def spoil(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(table) and ".block.0." not in name]:
            del tensors[name]

    spoilt(path, spoil)
    refused(comfy, "no text encoder")


def test_settings_of_the_official_layout_are_untouched(comfy: Path) -> None:
    settings = json.loads((comfy / "config.json").read_text())
    assert "num_attention_heads" not in settings
    change(comfy / "config.json", wanpipe={"steps": 7})
    assert detect(comfy).variant.defaults.steps == 7


def test_files_are_told_by_their_keys_not_their_names(
    comfy: Path, tmp_path: Path, official: Official
) -> None:
    for index, path in enumerate(sorted(comfy.rglob("*.safetensors"))):
        path.rename(comfy / f"{index}.safetensors")
    assert converted(comfy, tmp_path / "after") == official("wan21-t2v")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (
            "_class_name",
            "WanAnimateTransformer3DModel",
            "_class_name must be WanTransformer3DModel",
        ),
        ("qk_norm", "layer_norm", "qk_norm must be rms_norm_across_heads"),
        ("in_channels", 36, "says in_dim 36, but the weights have 16"),
        ("attention_head_dim", 64, "says dim 128, but the weights have 64"),
        ("num_attention_heads", "2", "num_heads must be a number"),
        ("action_dim", 30, "unknown keys: action_dim"),
    ],
)
def test_a_wrong_setting_of_diffusers_is_refused(
    diffusers: Path, key: str, value: object, why: str
) -> None:
    for part in ("transformer", "transformer_2"):
        change(diffusers / part / "config.json", **{key: value})
    refused(diffusers, why)


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "transformer_2/diffusion_pytorch_model.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_of_diffusers_is_named(diffusers: Path, file: str) -> None:
    (diffusers / file).unlink()
    refused(diffusers, f"lacks .*{Path(file).name}")


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("vae/wan_vae.safetensors", "no VAE of Wan2.1; put it there"),
        ("text_encoders/umt5_xxl.safetensors", r"no text encoder \(umT5-XXL\)"),
        ("tokenizer.json", "no tokenizer.json .that of umT5"),
        ("diffusion_models/wan.safetensors", "holds no transformer; give a folder"),
    ],
)
def test_a_missing_single_file_is_named(comfy: Path, file: str, why: str) -> None:
    (comfy / file).unlink()
    refused(comfy, why)
