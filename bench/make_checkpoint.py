"""Writes a random checkpoint of any size in the official layout, in bounded memory.

    python -m bench.make_checkpoint 1.3b /tmp/wan-1.3b

Weights are seeded random values of realistic scale, so videos are noise. Downloads nothing and does
not need torch.
"""

import argparse
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from bench import layouts
from wanpipe.checkpoints.dtypes import NAMES, Array, narrow
from wanpipe.weights.write import TensorSpec, write_tensors

BLOCK = 1 << 22  # values drawn at a time
SHARD = 9_500_000_000  # bytes; official shards have up to 10 GB
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
STORAGES = {"BF16": "BFloat16Storage", "F32": "FloatStorage", "F16": "HalfStorage"}
WIDE = {"V": 256384, "D": 4096, "A": 4096, "F": 10240, "N": 64, "layers": 24}
VACE_1_3B, VACE_14B = tuple(range(0, 30, 2)), tuple(range(0, 40, 5))
VACE_CHANNELS = 96
NARROW = {"V": 401, "D": 64, "A": 64, "F": 160, "N": 4, "layers": 3}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Dimensions of an official checkpoint, or of a tiny one."""

    dit: dict[str, int]  # width D, feed forward F, heads, layers, channels in and out
    vae: tuple[str, int, int, int] = ("2.1", 96, 96, 16)  # version, base widths, latent channels
    t5: dict[str, int]
    kind: str = "t2v"
    vace_layers: tuple[int, ...] = ()  # layers after which a VACE block runs
    expert: str = ""  # folder of the expert, if the checkpoint has two


def dit(dim: int, ffn: int, heads: int, layers: int, before: int, after: int) -> dict[str, int]:
    return {
        "dim": dim,
        "ffn_dim": ffn,
        "num_heads": heads,
        "num_layers": layers,
        "in_dim": before,
        "out_dim": after,
        "freq_dim": 256,
    }


PRESETS = {
    "tiny": Preset(dit=dit(64, 128, 2, 2, 16, 16), vae=("2.1", 4, 4, 16), t5=NARROW),
    "1.3b": Preset(dit=dit(1536, 8960, 12, 30, 16, 16), t5=WIDE),
    "14b": Preset(dit=dit(5120, 13824, 40, 40, 16, 16), t5=WIDE),
    "5b": Preset(
        dit=dit(3072, 14336, 24, 30, 48, 48), vae=("2.2", 160, 256, 48), t5=WIDE, kind="ti2v"
    ),
    "vace-1.3b": Preset(
        dit=dit(1536, 8960, 12, 30, 16, 16), t5=WIDE, kind="vace", vace_layers=VACE_1_3B
    ),
    "vace-14b": Preset(
        dit=dit(5120, 13824, 40, 40, 16, 16), t5=WIDE, kind="vace", vace_layers=VACE_14B
    ),
    "a14b-expert": Preset(dit=dit(5120, 13824, 40, 40, 16, 16), t5=WIDE, expert="high_noise_model"),
}


class Source:
    """Draws tensors that depend only on the seed and their names."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.seed, self.dtype = seed, dtype

    def blocks(self, name: str, shape: Sequence[int]) -> Iterator[Array]:
        """Draw a tensor in blocks, in the format of the file."""
        generator = np.random.default_rng([self.seed, crc32(name.encode())])
        mean, deviation = scale(name, shape)
        left = prod(shape)
        while left:
            values = generator.standard_normal(min(BLOCK, left), np.float32)
            values *= np.float32(deviation)
            values += np.float32(mean)
            yield narrow(values, self.dtype, name)
            left -= len(values)


def scale(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Return mean and deviation of a tensor, such that outputs have about the size of inputs."""
    if name.endswith(".gamma") or (".norm" in f".{name}" and name.endswith(".weight")):
        return 1.0, 0.05
    if name.endswith(".bias"):
        return 0.0, 0.02
    if "token_embedding" in name or "pos_embedding" in name:
        return 0.0, 1.0
    fan = shape[-1] if name.endswith("modulation") else prod(shape[1:])
    return 0.0, fan**-0.5


def write_safetensors(path: Path, tensors: Sequence[tuple[str, Any]], source: Source) -> None:
    specs = [TensorSpec(name, source.dtype, shape) for name, shape in tensors]
    write_tensors(path, specs, lambda one: source.blocks(one.name, one.shape), {})


def write_shards(folder: Path, tensors: Sequence[tuple[str, Any]], source: Source) -> None:
    """Write one file, or shards and their index if it would be large."""
    stem, width = "diffusion_pytorch_model", 4 if source.dtype == "F32" else 2
    shards: list[list[tuple[str, Any]]] = [[]]
    size = 0
    for name, shape in tensors:
        size += prod(shape) * width
        if size > SHARD and shards[-1]:
            shards.append([])
            size = prod(shape) * width
        shards[-1].append((name, shape))
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", tensors, source)
        return
    table: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = f"{stem}-{index + 1:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, source)
        table |= {name: file for name, _ in shard}
    total = sum(prod(shape) * width for _, shape in tensors)
    index_file = folder / f"{stem}.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": table}))


def write_torch(path: Path, tensors: Sequence[tuple[str, Any]], source: Source) -> None:
    """Write the format of torch.save: a zip archive of a pickle and one member per tensor."""
    root = path.stem
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", table_pickle(tensors, STORAGES[source.dtype]))
        archive.writestr(f"{root}/byteorder", "little")
        for index, (name, shape) in enumerate(tensors):
            with archive.open(f"{root}/data/{index}", "w", force_zip64=True) as member:
                for block in source.blocks(name, shape):
                    member.write(block.data)
        archive.writestr(f"{root}/version", "3\n")


def table_pickle(tensors: Sequence[tuple[str, Any]], storage: str) -> bytes:
    """Pickle an ordered dict of contiguous tensors, each with its own storage."""
    ordered = b"ccollections\nOrderedDict\n)R"
    items = []
    for index, (name, shape) in enumerate(tensors):
        strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        identity = b"(" + push("storage") + f"ctorch\n{storage}\n".encode()
        identity += push(str(index)) + push("cpu") + push(prod(shape)) + b"tQ"
        arguments = b"(" + identity + push(0) + push(shape) + push(strides) + b"\x89" + ordered
        rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"tR"
        items.append(push(name) + rebuilt)
    return b"\x80\x02" + ordered + b"(" + b"".join(items) + b"u."


def push(value: str | int | Sequence[int]) -> bytes:
    """Return the pickle instructions that push a string, a count or a tuple of counts."""
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return pickle.dumps(value, 2)[2:-1]
    return b"(" + b"".join(map(push, value)) + b"t"


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of single characters with T5's special tokens."""
    words = ["<pad>", "</s>", "<unk>", *map(chr, range(33, 127)), "▁"]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    end = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": words[index], "special": True, **special} for index in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pieces,
            "pair": pieces,
            "special_tokens": {"</s>": end},
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[word, -1.0] for word in words]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


def dit_tensors(preset: Preset) -> layouts.Tensors:
    """Return the tensor names and shapes of a transformer."""
    dims, text = preset.dit, preset.t5["D"]
    letters = {
        "D": dims["dim"],
        "F": dims["ffn_dim"],
        "I": dims["in_dim"],
        "O": 4 * dims["out_dim"],  # patches of 1x2x2
    }
    letters |= {"T": text, "Q": dims["freq_dim"], "C": VACE_CHANNELS}
    yield from layouts.expand(layouts.DIT, dims["num_layers"], **letters)
    if preset.vace_layers:
        yield from layouts.expand(layouts.VACE, len(preset.vace_layers), **letters)


def t5_tensors(preset: Preset) -> layouts.Tensors:
    """Return the tensor names and shapes of a text encoder."""
    letters = {name: value for name, value in preset.t5.items() if name != "layers"}
    return layouts.expand(layouts.T5, preset.t5["layers"], **letters)


def write_dit(folder: Path, preset: Preset, source: Source) -> None:
    """Write a transformer and its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "VaceWanModel" if preset.vace_layers else "WanModel"
    names: dict[str, Any] = {"_class_name": kind, "model_type": preset.kind}
    if preset.vace_layers:
        names |= {"vace_layers": preset.vace_layers, "vace_in_dim": VACE_CHANNELS}
    config = {**names, **preset.dit, "text_dim": preset.t5["D"], "text_len": 512, "eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, list(dit_tensors(preset)), source)


def parts(preset: Preset, directory: Path, seed: int, dtype: str) -> dict[str, Callable[[], None]]:
    """Return a function for each part of a checkpoint that writes it."""
    return {
        "dit": lambda: write_dit(directory / preset.expert, preset, Source(seed, NAMES[dtype])),
        "t5": lambda: write_torch(
            directory / T5_FILE, list(t5_tensors(preset)), Source(seed, "BF16")
        ),
        "vae": lambda: write_torch(
            directory / f"Wan{preset.vae[0]}_VAE.pth",
            list(layouts.vae(*preset.vae)),
            Source(seed, "F32"),
        ),
        "tokenizer": lambda: write_tokenizer(directory / "google/umt5-xxl/tokenizer.json"),
    }


def make(name: str, directory: Path, seed: int = 0, dtype: str = "float32") -> None:
    """Write the checkpoint `name` of PRESETS, with a transformer in `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    for write in parts(PRESETS[name], directory, seed, dtype).values():
        write()


def main() -> None:
    """Parse the options and write the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset", choices=PRESETS, help="Size of the checkpoint.")
    parser.add_argument("directory", type=Path, help="Directory to write.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights.")
    parser.add_argument("--dtype", choices=NAMES, default="float32", help="Of the transformer.")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["dit", "t5", "vae", "tokenizer"],
        help="Write only these parts.",
    )
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    table = parts(PRESETS[chosen.preset], chosen.directory, chosen.seed, chosen.dtype)
    for name, write in table.items():
        if chosen.only is None or name in chosen.only:
            write()


if __name__ == "__main__":
    main()
