"""The demo models: tiny Wan checkpoints in the official layout, and the words they understand.

The text-to-video model stores the T5, the VAE and the tokenizer, which the others share. VACE adds
its own weights to the transformer of text-to-video.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
T2V = CHECKPOINTS / "t2v"
LORA = CHECKPOINTS / "lora" / "outline.safetensors"
NAMES = ("t2v", "t2v-a14b", "i2v-a14b", "vace")
TRANSFORMER = "diffusion_pytorch_model.safetensors"
SHARED = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json")


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    """Provide a directory with the complete checkpoint `name`, one of NAMES.

    Except for "t2v", the directory is temporary and exists only inside the `with` block.
    Raises KeyError for any other name.
    """
    if name not in NAMES:
        raise KeyError(f"unknown demo checkpoint {name}; use one of {', '.join(NAMES)}")
    if name == "t2v":
        yield T2V
        return
    with tempfile.TemporaryDirectory(prefix="wanpipe-demo-") as folder:
        whole = Path(folder) / name
        for source in sorted((CHECKPOINTS / name).rglob("*")):
            if source.is_file():
                copy(source, whole / source.relative_to(CHECKPOINTS / name))
        for part in (*SHARED, TRANSFORMER) if name == "vace" else SHARED:
            copy(T2V / part, whole / part)
        yield whole


def copy(source: Path, target: Path) -> None:
    """Copy a file's contents without its mode, which is read-only in some installations."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
