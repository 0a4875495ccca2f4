"""Records what TAEHV makes of a latent, with random weights.

    python tests/data/taehv_frames.py TAEHV.PY

Needs torch 2.13. TAEHV.PY is taehv.py of github.com/madebyollin/taehv at commit 1f14a56. Writes
tests/data/expected/tiny-vae/*.safetensors.xz: `frames` (T, Y, X, 3) float32 in [0, 1].

The weights and latents are those that tests/tiny_vae.py draws, at full width. They are loaded as
the reference loads its files, which are recognized by their names.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pack import HERE, write
from safetensors.numpy import save

sys.path.insert(0, str(HERE.parent.parent))

from tests.tiny_vae import KINDS, draw_latent, draw_weights


def reference(path: Path) -> Any:
    """Import the reference's only module."""
    spec = importlib.util.spec_from_file_location("taehv", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decode(taehv: Any, kind: str) -> torch.Tensor:
    """Decode the latent of a kind with the reference, as (T, Y, X, 3)."""
    channels, patch = KINDS[kind]
    empty = taehv.TAEHV(None, patch_size=patch, latent_channels=channels)
    drawn = {name: torch.from_numpy(values) for name, values in draw_weights(kind).items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.pth"
        torch.save({**empty.state_dict(), **drawn}, file)
        network = taehv.TAEHV(str(file)).float().eval()
    latent = torch.from_numpy(draw_latent(kind))  # (C, F, H, W)
    with torch.no_grad():
        frames = network.decode_video(latent.transpose(0, 1)[None], parallel=False)[0]
    return frames.permute(0, 2, 3, 1).contiguous()


def main() -> None:
    taehv = reference(Path(sys.argv[1]))
    for kind in KINDS:
        frames = decode(taehv, kind)
        inside = ((frames > 0) & (frames < 1)).float().mean()
        shape, deviation = tuple(frames.shape), frames.std()
        print(f"{kind}: {shape}, {inside:.0%} inside [0, 1], deviation {deviation:.2f}")
        data = save({"frames": frames.numpy()})
        write(data, HERE / "expected" / "tiny-vae" / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
