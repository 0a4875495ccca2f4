"""Copies a checkpoint in the official layout, with its transformer as a GGUF file.

    python -m bench.make_gguf /tmp/wan-1.3b /tmp/wan-1.3b-gguf Q4_K

Matrices are random bytes of that type, which take as long to compute as real ones. Tensors of one
or five axes stay float32, as in files of the field. Needs the extra `gguf`.
"""

import argparse
import shutil
from pathlib import Path

import gguf
import numpy as np

from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.read import open_tensors


def write(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write the copy. Tensors wait in a temporary file, not in memory."""
    checkpoint = detect(source)
    for name in ("t5_encoder", "vae", "tokenizer"):
        for path in checkpoint.files[name]:
            place = target / path.relative_to(checkpoint.directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    shutil.copyfile(checkpoint.configs[0], target / "config.json")
    writer = gguf.GGUFWriter(target / f"wan-{kind.name}.gguf", "wan", use_temp_file=True)
    dice, (block, size) = np.random.default_rng(0), gguf.GGML_QUANT_SIZES[kind]
    with open_tensors(checkpoint.files["model"]) as file:
        for name, info in file.tensors.items():
            if len(info.shape) in (1, 5) or info.shape[-1] % block:
                writer.add_tensor(name, file.read_float32(name))
                continue
            shape = (*info.shape[:-1], info.shape[-1] // block * size)
            data = dice.integers(0, 256, shape, dtype=np.uint8)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Parse the options and write the copy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="Checkpoint to copy.")
    parser.add_argument("target", type=Path, help="Directory to write.")
    parser.add_argument("type", choices=gguf.GGMLQuantizationType.__members__, help="Of matrices.")
    chosen = parser.parse_args()
    write(chosen.source, chosen.target, gguf.GGMLQuantizationType[chosen.type])


if __name__ == "__main__":
    main()
