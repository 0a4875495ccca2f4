"""Writes the trained weights as official checkpoints in bfloat16.

    python -m bench.train_demo.export --run OUT --vae Wan2.1_VAE.pth \\
        --checkpoints wanpipe/demo/checkpoints

`OUT` is the output of train_dit.py; missing parts are skipped. data.py writes the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.train_demo.train_dit import LARGE, SMALL
from bench.train_demo.train_vae import rounded

FOLDERS = {
    "t2v": "t2v",
    "high": "t2v-a14b/high_noise_model",
    "low": "t2v-a14b/low_noise_model",
    "i2v-high": "i2v-a14b/high_noise_model",
    "i2v-low": "i2v-a14b/low_noise_model",
}


def save_dit(source: Path, folder: Path) -> None:
    """Write one transformer and its config.json."""
    config = LARGE if source.stem == "t2v" else SMALL
    config = replace(config, in_dim=36) if source.stem.startswith("i2v") else config
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(source, map_location="cpu")
    save_file(dict(rounded(state)), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.official(), indent=2) + "\n")


def main() -> None:
    """Write every part of the run, then list the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    args = parser.parse_args()
    root = args.checkpoints
    (root / "t2v").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.vae, root / "t2v/Wan2.1_VAE.pth")
    text = torch.load(args.run / "t5.pt", map_location="cpu")
    torch.save(rounded(text), root / "t2v/models_t5_umt5-xxl-enc-bf16.pth")
    for name, folder in FOLDERS.items():
        if (args.run / f"{name}.pt").exists():
            save_dit(args.run / f"{name}.pt", root / folder)
    if (args.run / "outline.safetensors").exists():
        (root / "lora").mkdir(exist_ok=True)
        shutil.copyfile(args.run / "outline.safetensors", root / "lora/outline.safetensors")
    paths = [p for p in sorted(root.rglob("*")) if p.is_file()]
    for path in paths:
        path.chmod(0o644)
        print(f"{path.stat().st_size:9d} {path.relative_to(root)}")
    print(f"{sum(p.stat().st_size for p in paths):9d} total")


if __name__ == "__main__":
    main()
