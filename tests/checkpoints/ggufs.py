"""Writes GGUF files as ComfyUI-GGUF and llama.cpp do, and the safetensors files with their values.

The names are made here by other rules than those that wanpipe reads them with.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tests.checkpoints.foreign import UMT5, Tensors, renamed, save, stored
from wanpipe.checkpoints.detect import Checkpoint, detect
from wanpipe.checkpoints.dtypes import widen

T5 = [
    (r"^token_embedding", "token_embd"),
    (r"^norm", "enc.output_norm"),
    (r"^blocks\.(\d+)\.norm1", r"enc.blk.\1.attn_norm"),
    (r"^blocks\.(\d+)\.norm2", r"enc.blk.\1.ffn_norm"),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding", r"enc.blk.\1.attn_rel_b"),
    (r"^blocks\.(\d+)\.attn\.", r"enc.blk.\1.attn_"),
    (r"^blocks\.(\d+)\.ffn\.gate\.0", r"enc.blk.\1.ffn_gate"),
    (r"^blocks\.(\d+)\.ffn\.fc1", r"enc.blk.\1.ffn_up"),
    (r"^blocks\.(\d+)\.ffn\.fc2", r"enc.blk.\1.ffn_down"),
]
# axes of the tiny transformer that have its width by chance: text and output channels
OTHER_AXES = {("text_embedding.0.weight", 1), ("head.head.weight", 0), ("head.head.bias", 0)}
# where the half-precision scales of a block are, in bytes; the package cannot quantize these types
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_XS: (0,),
}


def random_blocks(kind: Kind, shape: tuple[int, ...], dice: np.random.Generator) -> np.ndarray:
    """Draw the bytes of a quantized tensor with weights of a usual size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = dice.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = dice.uniform(1e-5, 1e-4, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(*shape[:-1], -1)


def chosen_kind(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    """Choose the type of a tensor as ComfyUI-GGUF and llama.cpp do."""
    if len(shape) in (1, 5) or "modulation" in name or "attn_rel_b" in name:
        return Kind.F32
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def write_gguf(path: Path, tensors: Tensors, kind: Kind, architecture: str = "wan") -> Tensors:
    """Write a GGUF file; return what its values are, as the package computes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.name", "été " * 99)
    writer.add_array("tokenizer.ggml.tokens", ["▁a", "", "b" * 3000])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.5])
    dice, result = np.random.default_rng(len(tensors)), {}
    for name, (dtype, numbers) in tensors.items():
        values = np.ascontiguousarray(widen(numbers, dtype, name))
        chosen = chosen_kind(name, values.shape, kind)
        if chosen in SCALES:
            data = random_blocks(chosen, values.shape, dice)
        else:
            data = gguf.quantize(values, chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
        result[name] = ("F32", gguf.dequantize(data, chosen).reshape(values.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return result


def copy_rest(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the other files of an official checkpoint to where its repository has them."""
    for name in ("vae", "tokenizer", "clip"):
        for path in checkpoint.files.get(name, ()):
            place = target / path.relative_to(checkpoint.directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    shutil.copyfile(checkpoint.configs[0], target / "config.json")


def write_pair(source: Path, target: Path, kind: Kind) -> tuple[Path, Path]:
    """Write the official checkpoint `source` with transformers and text encoder in GGUF; and again
    with their values in safetensors.
    """
    checkpoint, folders = detect(source), (target / "gguf", target / "safetensors")
    names = {"model": "wan", "high_noise_model": "HighNoise", "low_noise_model": "LowNoise"}
    for expert in checkpoint.experts:
        name = f"{names[expert]}-{kind.name}"
        files = stored(checkpoint.files[expert])
        values = write_gguf(folders[0] / f"{name}.gguf", files, kind)
        save(folders[1] / f"{name}.safetensors", values)
    text = stored(checkpoint.files["t5_encoder"])
    values = write_gguf(folders[0] / f"umt5-{kind.name}.gguf", renamed(text, T5), kind, "t5encoder")
    official = dict(zip(text, values.values(), strict=True))
    save(folders[1] / "umt5.safetensors", renamed(official, UMT5))
    for folder in folders:
        copy_rest(checkpoint, folder)
    return folders


def widened(source: Path, target: Path) -> Path:
    """Write the checkpoint `source` with a transformer of random weights that is four times as
    wide: its rows have 256 numbers, which K-quants need.
    """
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    checkpoint, dice = detect(target), np.random.default_rng(3)
    settings = json.loads(checkpoint.configs[0].read_text())
    settings |= {"dim": 4 * settings["dim"], "ffn_dim": 4 * settings["ffn_dim"]}
    checkpoint.configs[0].write_text(json.dumps(settings))
    tensors: Tensors = {}
    for name, (_, value) in stored(checkpoint.files["model"]).items():
        shape = tuple(
            length * (4 if length in (64, 128, 384) and (name, axis) not in OTHER_AXES else 1)
            for axis, length in enumerate(value.shape)
        )
        tensors[name] = ("F32", dice.normal(0, 0.05, shape).astype(np.float32))
    save(checkpoint.files["model"][0], tensors)
    return target
