"""Checkpoints of diffusers' and ComfyUI's layouts: the same model as from the official files."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.checkpoints.foreign import (
    DIT,
    UMT5,
    Official,
    converted,
    diffusers_vae,
    eight_bit,
    refused,
    renamed,
    save,
    scaled,
    silent,
    spoilt,
    stored,
    write_comfy,
    write_diffusers,
)
from tests.checkpoints.test_detect import NAMES, change
from tests.conftest import relative_error
from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.dtypes import FLOAT8_VALUES
from wanpipe.checkpoints.source_hashes import source_hashes
from wanpipe.checkpoints.state_dict import open_network
from wanpipe.weights.convert import Options, material

LAYOUTS = {"diffusers": write_diffusers, "comfy": write_comfy}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", NAMES)
def test_every_layout_gives_the_same_files(
    checkpoints: Path, tmp_path: Path, official: Official, family: str, layout: str
) -> None:
    source = LAYOUTS[layout](checkpoints / family, tmp_path / layout)
    assert converted(source, tmp_path / "theirs") == official(family)


def test_names_are_those_of_the_other_projects(checkpoints: Path) -> None:
    """A few of each, literally; the rest follows from the equal files."""
    files = detect(checkpoints / "wan21-i2v").files
    dit, text = renamed(stored(files["model"]), DIT), renamed(stored(files["t5_encoder"]), UMT5)
    flat = diffusers_vae(stored(files["vae"]))
    nested = diffusers_vae(stored(detect(checkpoints / "wan22-ti2v-5b").files["vae"]))
    assert {
        "scale_shift_table",
        "proj_out.weight",
        "condition_embedder.time_proj.bias",
        "condition_embedder.image_embedder.ff.net.0.proj.weight",
        "blocks.1.scale_shift_table",
        "blocks.0.attn1.to_out.0.bias",
        "blocks.0.attn2.add_k_proj.weight",
        "blocks.0.attn2.norm_added_k.weight",
        "blocks.0.norm2.weight",
        "blocks.1.ffn.net.0.proj.weight",
    } <= set(dit)
    assert {
        "shared.weight",
        "encoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "encoder.final_layer_norm.weight",
    } <= set(text)
    assert {
        "quant_conv.weight",
        "encoder.down_blocks.2.resample.1.weight",
        "encoder.down_blocks.3.conv_shortcut.weight",
        "encoder.down_blocks.5.time_conv.bias",
        "decoder.mid_block.attentions.0.to_qkv.weight",
        "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
        "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
        "decoder.up_blocks.3.resnets.2.norm2.gamma",
        "decoder.conv_out.bias",
    } <= set(flat)
    assert {
        "encoder.down_blocks.1.downsampler.time_conv.weight",
        "encoder.down_blocks.3.resnets.1.conv2.weight",
        "decoder.up_blocks.0.upsampler.resample.1.bias",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
    } <= set(nested)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_the_prefix_of_a_transformer_does_not_matter(
    checkpoints: Path, tmp_path: Path, official: Official, prefix: str
) -> None:
    source = write_comfy(checkpoints / "wan21-t2v", tmp_path / "source", prefix)
    assert converted(source, tmp_path / "theirs") == official("wan21-t2v")


@pytest.mark.parametrize("prefix", ["model.", "first_stage_model.", "vae."])
def test_the_prefix_of_a_vae_does_not_matter(
    comfy: Path, checkpoints: Path, tmp_path: Path, official: Official, prefix: str
) -> None:
    tensors = stored(detect(checkpoints / "wan21-t2v").files["vae"])
    renamed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    save(comfy / "vae" / "wan_vae.safetensors", renamed)
    assert converted(comfy, tmp_path / "theirs") == official("wan21-t2v")


def test_official_names_in_single_files_are_read(
    checkpoints: Path, tmp_path: Path, official: Official
) -> None:
    files = detect(checkpoints / "wan21-t2v").files
    source = tmp_path / "source"
    for name in ("model", "t5_encoder", "vae"):
        save(source / f"{name}.safetensors", stored(files[name]))
    shutil.copyfile(files["tokenizer"][0], source / "tokenizer.json")
    shutil.copyfile(checkpoints / "wan21-t2v" / "config.json", source / "config.json")
    assert converted(source, tmp_path / "theirs") == official("wan21-t2v")


def test_material_names_the_files_and_follows_their_content(comfy: Path, tmp_path: Path) -> None:
    def current() -> dict[str, str]:
        checkpoint = detect(comfy)
        hashes = source_hashes(checkpoint, None, silent)
        source: dict[str, str] = material(checkpoint, hashes, Options())["source"]
        return source

    first = current()
    assert set(first) == {
        "config.json",
        "diffusion_models/wan.safetensors",
        "text_encoders/umt5_xxl.safetensors",
        "tokenizer.json",
        "vae/wan_vae.safetensors",
    }
    comfy = comfy.rename(tmp_path / "moved")
    assert current() == first
    change(comfy / "config.json", _diffusers_version="9")
    assert current() != first


def matrix(name: str) -> bool:
    return name.endswith("weight") and (".attn" in name or "_attn." in name or "ffn" in name)


def not_norm(name: str) -> bool:
    return matrix(name) and "norm" not in name


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_scaled_8_bit_weights_are_multiplied_with_their_scales(
    comfy: Path, checkpoints: Path, tmp_path: Path, ending: str
) -> None:
    path = comfy / "diffusion_models" / "wan.safetensors"
    tensors, values = scaled(stored((path,)), not_norm)
    renamed_scales = renamed(tensors, [("scale_weight$", ending)])
    save(path, renamed_scales)
    converted(comfy, tmp_path / "theirs", "float32")
    converted(checkpoints / "wan21-t2v", tmp_path / "ours", "float32")
    theirs = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    ours = mx.load(str(tmp_path / "ours" / "model.safetensors"))
    assert len(values) == 2 * 10
    for name, value in ours.items():
        official = "model.diffusion_model." + name.replace("fc1", "0").replace("fc2", "2")
        if official in values:
            np.testing.assert_array_equal(theirs[name], values[official])
            assert relative_error(theirs[name], value) < 2**-4  # three bits of mantissa
            assert relative_error(theirs[name], value) > 2**-8
        else:
            assert mx.array_equal(theirs[name], value)


def test_scales_of_products_and_unscaled_8_bit_weights_are_understood(
    comfy: Path, tmp_path: Path
) -> None:
    path = comfy / "text_encoders" / "umt5_xxl.safetensors"
    tensors, values = scaled(stored((path,)), lambda name: "SelfAttention.q" in name)
    module = "encoder.block.0.layer.0.SelfAttention.q"
    tensors[f"{module}.scale_input"] = ("F32", np.ones(1, np.float32))
    config = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)
    tensors[f"{module}.comfy_quant"] = ("U8", config)
    plain = "encoder.block.0.layer.0.SelfAttention.k.weight"
    dtype, bits = tensors[plain]
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    tensors[plain] = ("F8_E5M2", eight_bit(exact, "F8_E5M2"))
    save(path, tensors)
    with open_network(path) as network:
        np.testing.assert_array_equal(
            network.read("blocks.0.attn.q.weight"), values[f"{module}.weight"]
        )
        found = network.read_float32("blocks.0.attn.k.weight")
        np.testing.assert_array_equal(found, FLOAT8_VALUES["F8_E5M2"][tensors[plain][1]])
    assert dtype == "BF16"
    converted(comfy, tmp_path / "model")


WEIGHT = "model.diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"alien": np.zeros(3, "<f4")}, "more than one network: alien beside"),
        ({"model.diffusion_model.alien": np.zeros(3, "<f4")}, "unknown tensors: .*alien"),
        ({"model.diffusion_model.vace_blocks.0.x": np.zeros(3, "<f4")}, "unknown tensors: .*vace"),
        ({f"{WEIGHT}.scale_weight": np.ones(1, "<f4")}, "not an 8-bit float but F32"),
        ({f"{WEIGHT}.comfy_quant": np.zeros(9, "u1")}, "must be one of float8_e4m3fn"),
        (
            {f"{WEIGHT}.comfy_quant": np.frombuffer(b'{"format": "nvfp4"}', "u1")},
            "float8_e5m2, got nvfp4; use the file without this quantization",
        ),
        ({f"{WEIGHT}.weight": np.zeros((64, 64), "u1")}, "floating-point numbers, got U8"),
        (
            {
                f"{WEIGHT}.weight": np.zeros((64, 64), "i1"),
                f"{WEIGHT}.scale_weight": np.ones((64, 1), "<f4"),
            },
            "must be one number, got F32 of shape",
        ),
        (
            {
                f"{WEIGHT}.weight": np.zeros((64, 64), "i1"),
                f"{WEIGHT}.scale_weight": np.full(1, np.nan, "<f4"),
            },
            "scale_weight is nan",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    comfy: Path, extra: dict[str, np.ndarray], why: str
) -> None:
    kinds = {"<f4": "F32", "|u1": "U8", "|i1": "F8_E4M3"}
    added = {name: (kinds[value.dtype.str], value) for name, value in extra.items()}
    spoilt(comfy / "diffusion_models" / "wan.safetensors", lambda tensors: tensors.update(added))
    refused(comfy, why)


@pytest.mark.parametrize("name", ["proj_out.weight", "blocks.1.attn2.to_q.bias"])
def test_a_missing_tensor_is_reported_by_our_name(diffusers: Path, name: str) -> None:
    path = diffusers / "transformer_2" / "diffusion_pytorch_model.safetensors"
    spoilt(path, lambda tensors: tensors.pop(name))
    refused(diffusers, "missing tensors: blocks.1.cross_attn.q.bias|lacks head.head.weight")


def test_a_tensor_under_both_names_is_refused(diffusers: Path) -> None:
    path = diffusers / "transformer" / "diffusion_pytorch_model.safetensors"
    spoilt(path, lambda tensors: tensors.update({"head.head.bias": tensors["proj_out.bias"]}))
    refused(diffusers, "gives head.head.bias twice")
