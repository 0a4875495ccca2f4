"""Writes the trained weights as official checkpoints in bfloat16.

    python -m bench.train_demo.export --run OUT --vae Wan2.1_VAE.pth \\
        --checkpoints wanpipe/demo/checkpoints

`OUT` is the output of train_dit.py; missing parts are skipped. data.py writes the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.train_demo.evaluate import MODULE
from bench.train_demo.train_dit import FOLDERS, config_of
from bench.train_demo.train_vae import rounded
from wanpipe.demo import world

# what wanpipe takes from the configuration as the model's defaults
DEFAULTS = {
    **{"width": world.SIZE, "height": world.SIZE, "num_frames": world.FRAMES, "fps": world.FPS},
    **{"steps": 20, "guide_scale": [2.0, 2.0], "shift": 5.0},
}


def save_dit(source: Path, folder: Path) -> None:
    """Write one transformer and its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state, file = torch.load(source, map_location="cpu"), "diffusion_pytorch_model.safetensors"
    if source.stem == "vace":  # the other weights are those of text-to-video
        state, file = {k: v for k, v in state.items() if k.startswith("vace_")}, MODULE
    save_file(dict(rounded(state)), folder / file)
    config = config_of(source.stem).official() | {"wanpipe": DEFAULTS}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Write every part of the run, then list the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--vae", type=Path, help="Default: the VAE and the T5 stay.")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--stages", nargs="*", help="Default: all that are in the run.")
    args = parser.parse_args()
    root = args.checkpoints
    (root / "t2v").mkdir(parents=True, exist_ok=True)
    if args.vae:
        shutil.copyfile(args.vae, root / "t2v/Wan2.1_VAE.pth")
        text = torch.load(args.run / "t5.pt", map_location="cpu")
        torch.save(rounded(text), root / "t2v/models_t5_umt5-xxl-enc-bf16.pth")
    for name, folder in {**FOLDERS, "vace": "vace"}.items():
        chosen = not args.stages or name in args.stages
        if chosen and (args.run / f"{name}.pt").exists():
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
