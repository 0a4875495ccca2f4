"""The tiny Wan that ships: checkpoints in the official layout, their world, a judge of films.

T5, VAE and tokenizer are stored once, with the text-to-video model; the pairs borrow them.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
T2V = CHECKPOINTS / "t2v"
LORA = CHECKPOINTS / "lora" / "outline.safetensors"
NAMES = ("t2v", "t2v-a14b", "i2v-a14b")
SHARED = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json")


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    """Give a folder with the whole checkpoint `name`, one of NAMES, in the official layout.

    The folder of a pair is temporary: convert it before the block ends. Raises KeyError for
    another name.
    """
    if name not in NAMES:
        raise KeyError(f"no demo checkpoint {name}; there are {', '.join(NAMES)}")
    if name == "t2v":
        yield T2V
        return
    with tempfile.TemporaryDirectory(prefix="wanpipe-demo-") as folder:
        whole = Path(folder) / name
        for source in sorted((CHECKPOINTS / name).rglob("*")):
            if source.is_file():
                copy(source, whole / source.relative_to(CHECKPOINTS / name))
        for part in SHARED:
            copy(T2V / part, whole / part)
        yield whole


def copy(source: Path, target: Path) -> None:
    """Copy contents alone: modes of a read-only installation would keep the copy from going."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
