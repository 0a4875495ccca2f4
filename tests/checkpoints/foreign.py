"""Writes the tiny checkpoints in the layouts of diffusers and ComfyUI: other names, the same
numbers.

The names are made here by other rules than those that wanpipe reads them with.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.dtypes import FLOAT8_VALUES
from wanpipe.checkpoints.read import open_tensors
from wanpipe.errors import CheckpointError
from wanpipe.models.config import ModelConfig
from wanpipe.weights.convert import Options, convert
from wanpipe.weights.write import TensorSpec, write_tensors

Stored = tuple[str, np.ndarray]  # format, numbers as stored
Tensors = dict[str, Stored]
Official = Callable[[str], ModelConfig]  # the model that a family's official files become
KEY = "0" * 32

DIT = [
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"^img_emb\.proj\.0", "condition_embedder.image_embedder.norm1"),
    (r"^img_emb\.proj\.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    (r"^img_emb\.proj\.3", "condition_embedder.image_embedder.ff.net.2"),
    (r"^img_emb\.proj\.4", "condition_embedder.image_embedder.norm2"),
    (r"^img_emb\.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    (r"^head\.head", "proj_out"),
    (r"before_proj", "proj_in"),
    (r"after_proj", "proj_out"),
    (r"^head\.modulation|modulation$", "scale_shift_table"),
    (r"norm3", "norm2"),
    (r"ffn\.0", "ffn.net.0.proj"),
    (r"ffn\.2", "ffn.net.2"),
    (r"cross_attn\.k_img", "attn2.add_k_proj"),
    (r"cross_attn\.v_img", "attn2.add_v_proj"),
    (r"cross_attn\.norm_k_img", "attn2.norm_added_k"),
    (r"_attn\.([qkv])\.", r"_attn.to_\1."),
    (r"_attn\.o\.", "_attn.to_out.0."),
    (r"self_attn", "attn1"),
    (r"cross_attn", "attn2"),
]
VAE = [
    (r"^conv1", "quant_conv"),
    (r"^conv2", "post_quant_conv"),
    (r"coder\.conv1", "coder.conv_in"),
    (r"head\.0", "norm_out"),
    (r"head\.2", "conv_out"),
    (r"middle\.0", "mid_block.resnets.0"),
    (r"middle\.1", "mid_block.attentions.0"),
    (r"middle\.2", "mid_block.resnets.1"),
    (r"residual\.0", "norm1"),
    (r"residual\.2", "conv1"),
    (r"residual\.3", "norm2"),
    (r"residual\.6", "conv2"),
    (r"shortcut", "conv_shortcut"),
]
UMT5 = [
    (r"^token_embedding", "shared"),
    (r"^norm", "encoder.final_layer_norm"),
    (r"^blocks\.(\d+)\.norm1", r"encoder.block.\1.layer.0.layer_norm"),
    (r"^blocks\.(\d+)\.norm2", r"encoder.block.\1.layer.1.layer_norm"),
    (r"^blocks\.(\d+)\.attn", r"encoder.block.\1.layer.0.SelfAttention"),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding", r"encoder.block.\1.layer.0.SelfAttention.bias"),
    (r"SelfAttention\.bias", "SelfAttention.relative_attention_bias"),
    (r"^blocks\.(\d+)\.ffn", r"encoder.block.\1.layer.1.DenseReluDense"),
    (r"gate\.0", "wi_0"),
    (r"fc1", "wi_1"),
    (r"fc2", "wo"),
]
CLIP = [
    (r"^visual\.cls_embedding", "vision_model.embeddings.class_embedding"),
    (r"^visual\.patch_embedding", "vision_model.embeddings.patch_embedding"),
    (r"^visual\.pos_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.pre_norm", "vision_model.pre_layrnorm"),
    (r"^visual\.post_norm", "vision_model.post_layernorm"),
    (r"^visual\.transformer", "vision_model.encoder.layers"),
    (r"\.norm1", ".layer_norm1"),
    (r"\.norm2", ".layer_norm2"),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.2", "mlp.fc2"),
]


def renamed(tensors: Tensors, rules: list[tuple[str, str]]) -> Tensors:
    result = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def diffusers_vae(tensors: Tensors) -> Tensors:
    """Rename a VAE's tensors: Wan2.2 nests its stages, Wan2.1 only those of the decoder."""
    nested = any(".downsamples.0.downsamples." in name for name in tensors)
    place = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:\w+samples\.(\d+)\.)?")
    result = {}
    for name, value in renamed(tensors, VAE).items():
        if found := place.match(name):
            half, way, first, second = found.groups()
            rest = name[found.end() :]
            if way == "up" and not nested:
                first, second = (str(number) for number in divmod(int(first), 4))
            within = "" if second is None else f"resnets.{second}."
            if second is not None and rest.startswith(("resample", "time_conv")):
                within = f"{way}sampler." if nested else "upsamplers.0."
            name = f"{half}.{way}_blocks.{first}.{within}{rest}"
        result[name] = value
    return result


def clip(tensors: Tensors) -> Tensors:
    """Keep the vision tower, with separate q, k and v and without unit axes."""
    result: Tensors = {}
    for name, (dtype, value) in tensors.items():
        if name == "visual.head" or not name.startswith("visual."):
            continue
        new = next(iter(renamed({name: (dtype, value)}, CLIP)))
        if "to_qkv" in name:
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                result[new.replace("attn.to_qkv", f"self_attn.{part}_proj")] = (dtype, third)
        else:
            flat = name in ("visual.cls_embedding", "visual.pos_embedding")
            result[new] = (dtype, value.squeeze() if flat else value)
    return result


def stored(files: tuple[Path, ...]) -> Tensors:
    with open_tensors(files) as file:
        return {name: (info.dtype, file.read(name)) for name, info in file.tensors.items()}


def save(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = [TensorSpec(name, dtype, value.shape) for name, (dtype, value) in tensors.items()]
    write_tensors(path, specs, lambda one: [np.ascontiguousarray(tensors[one.name][1])], {})
    return path


def save_shards(folder: Path, stem: str, tensors: Tensors) -> None:
    """Write two shards and their index."""
    names, table = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.safetensors"
        save(folder / file, {name: tensors[name] for name in part})
        table |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))


def transformer_class(config: dict[str, object]) -> str:
    return "WanVACETransformer3DModel" if "vace_layers" in config else "WanTransformer3DModel"


def diffusers_config(config: dict[str, object]) -> dict[str, object]:
    vace = {}
    if "vace_layers" in config:
        vace = {"vace_layers": config["vace_layers"], "vace_in_channels": config["vace_in_dim"]}
    return {
        **vace,
        "_class_name": transformer_class(config),
        "_diffusers_version": "0.35.0",
        "added_kv_proj_dim": None,
        "attention_head_dim": 32,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "image_dim": None,
        "in_channels": config["in_dim"],
        "num_attention_heads": config["num_heads"],
        "num_layers": config["num_layers"],
        "out_channels": config["out_dim"],
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": 514 if config["model_type"] == "flf2v" else None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config["text_dim"],
    }


def write_diffusers(source: Path, target: Path) -> Path:
    """Write the official checkpoint `source` as diffusers would save it."""
    checkpoint = detect(source)
    parts = {"model": "transformer", "high_noise_model": "transformer"}
    parts["low_noise_model"] = "transformer_2"
    for config, expert in zip(
        checkpoint.configs, list(checkpoint.files)[: len(checkpoint.experts)], strict=True
    ):
        folder = target / parts[expert]
        tensors = renamed(stored(checkpoint.files[expert]), DIT)
        save(folder / "diffusion_pytorch_model.safetensors", tensors)
        (folder / "config.json").write_text(
            json.dumps(diffusers_config(json.loads(config.read_text())))
        )
    (target / "text_encoder").mkdir()
    text = renamed(stored(checkpoint.files["t5_encoder"]), UMT5)
    save_shards(target / "text_encoder", "model", text)
    vae = diffusers_vae(stored(checkpoint.files["vae"]))
    save(target / "vae" / "diffusion_pytorch_model.safetensors", vae)
    if checkpoint.clip is not None:
        image = clip(stored(checkpoint.files["clip"]))
        save(target / "image_encoder" / "model.safetensors", image)
    (target / "tokenizer").mkdir()
    shutil.copyfile(checkpoint.files["tokenizer"][0], target / "tokenizer" / "tokenizer.json")
    both = len(checkpoint.experts) > 1
    pipelines = {"i2v": "WanImageToVideoPipeline", "vace": "WanVACEPipeline"}
    kind = transformer_class(json.loads(checkpoint.configs[0].read_text()))
    index = {
        "_class_name": pipelines.get(checkpoint.variant.task, "WanPipeline"),
        "boundary_ratio": checkpoint.variant.defaults.boundary,
        "transformer": ["diffusers", kind],
        "transformer_2": ["diffusers", kind] if both else [None, None],
    }
    (target / "model_index.json").write_text(json.dumps(index))
    return target


def write_comfy(source: Path, target: Path, prefix: str = "model.diffusion_model.") -> Path:
    """Write the official checkpoint `source` as single files in ComfyUI's folders."""
    checkpoint = detect(source)
    names = {
        "model": "wan",
        "high_noise_model": "wan_high_noise",
        "low_noise_model": "wan_low_noise",
    }
    for expert in checkpoint.experts:
        tensors = stored(checkpoint.files[expert])
        named = {prefix + name: value for name, value in tensors.items()}
        save(target / "diffusion_models" / f"{names[expert]}.safetensors", named)
    text = renamed(stored(checkpoint.files["t5_encoder"]), UMT5)
    text["spiece_model"] = ("U8", np.arange(99, dtype=np.uint8))
    save(target / "text_encoders" / "umt5_xxl.safetensors", text)
    save(target / "vae" / "wan_vae.safetensors", stored(checkpoint.files["vae"]))
    if checkpoint.clip is not None:
        image = clip(stored(checkpoint.files["clip"]))
        image["visual_projection.weight"] = ("F32", np.zeros((4, 4), np.float32))
        save(target / "clip_vision" / "clip_vision_h.safetensors", image)
    shutil.copyfile(checkpoint.files["tokenizer"][0], target / "tokenizer.json")
    shutil.copyfile(checkpoint.configs[0], target / "config.json")
    return target


def eight_bit(values: np.ndarray, kind: str = "F8_E4M3") -> np.ndarray:
    """Round to the nearest number of an 8-bit format; its codes."""
    table = FLOAT8_VALUES[kind]
    codes = np.flatnonzero(np.isfinite(table))
    order = codes[np.argsort(table[codes], kind="stable")]
    middles = (table[order][1:] + table[order][:-1]) / 2
    return order[np.searchsorted(middles, values)].astype(np.uint8)


def scaled(
    tensors: Tensors, choose: Callable[[str], bool]
) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Store the chosen weights as ComfyUI's scaled 8-bit floats; and what they then are."""
    result: Tensors = {"scaled_fp8": ("F8_E4M3", np.zeros(2, np.uint8))}
    values: dict[str, np.ndarray] = {}
    for name, (dtype, value) in tensors.items():
        if not choose(name):
            result[name] = (dtype, value)
            continue
        exact = value if dtype == "F32" else (value.astype(np.uint32) << 16).view(np.float32)
        scale = np.float32(np.abs(exact).max() / 448)
        codes = eight_bit(exact / scale)
        result[name] = ("F8_E4M3", codes)
        result[name.removesuffix("weight") + "scale_weight"] = ("F32", np.array(scale))
        values[name] = FLOAT8_VALUES["F8_E4M3"][codes] * scale
    return result, values


def silent(name: str, done: int, total: int) -> None:
    pass


def converted(source: Path, target: Path, dtype: str = "bfloat16") -> ModelConfig:
    return convert(detect(source), target, KEY, Options(dtype=dtype), silent)


def refused(directory: Path, why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        converted(directory, directory.parent / "refused")
    assert len(str(caught.value).splitlines()) == 1


def spoilt(path: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a file."""
    tensors = stored((path,))
    change(tensors)
    save(path, tensors)
