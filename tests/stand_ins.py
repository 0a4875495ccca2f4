"""What stands in for downloads and large videos when a page of the documentation is run.

Every command of a page loads this, so it imports little.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from wanpipe import demo
from wanpipe.app import main

CHECKPOINTS = {  # what a page may presume, and what it is here: of the demo, or of tests/data
    "Wan2.1-T2V-1.3B": "t2v",
    "Wan2.1-T2V-14B": "t2v",
    "Wan2.2-T2V-A14B": "t2v-a14b",
    "Wan2.2-I2V-A14B": "i2v-a14b",
    "Wan2.1-I2V-14B-480P": "wan21-i2v",
    "Wan2.1-I2V-14B-720P": "wan21-i2v",
    "Wan2.1-FLF2V-14B-720P": "wan21-flf2v",
    "Wan2.2-TI2V-5B": "wan22-ti2v-5b",
    "Wan2.1-VACE-1.3B": "wan21-vace",
    "FastWan2.1-T2V-1.3B-Diffusers": "t2v",
}
EXPERTS = ("high_noise_model.safetensors", "low_noise_model.safetensors")  # for Wan2.2-T2V-A14B
SIDE, FRAMES, STEPS = 32, 9, 10  # of the videos that these checkpoints make by default
SMALLER = {"--width": SIDE, "--height": SIDE, "--num-frames": FRAMES, "--steps": STEPS}


def small(words: Sequence[str]) -> list[str]:
    """Words of a wanpipe command, with sizes that a test has time for."""
    found = list(words)
    for index, word in enumerate(found[1:], 1):
        most = SMALLER.get(found[index - 1])
        if most is not None and word.isdecimal() and int(word) > most:
            found[index] = str(most)
    return found


def wanpipe(words: Sequence[str]) -> None:
    """Act as `wanpipe`, with small videos; those of `wanpipe demo` are small too."""
    demo.T2V = Path(os.environ["SHELF"]) / "Wan2.1-T2V-1.3B"
    main(small(words))


def hf(words: Sequence[str]) -> None:
    """Act as `hf`: what is about the network stands in, what is about its cache is real."""
    if words[:1] == ["cache"]:
        from huggingface_hub.cli.hf import main as real

        real()
    elif words[:1] == ["upload"]:
        upload(*words[1:])
    elif words[:2] != ["auth", "login"]:
        download(words)


def upload(repository: str, folder: str) -> None:
    """Act as `hf upload REPOSITORY FOLDER`, for a folder with a model card."""
    if not (Path(folder) / "README.md").is_file():
        sys.exit(f"hf: {folder} has no model card")
    target = Path(os.environ["SHELF"]) / "uploads" / repository
    shutil.copytree(folder, target, dirs_exist_ok=True)


def download(words: Sequence[str]) -> None:
    """Act as `hf download REPOSITORY [FILE ...] [--include PATTERN] --local-dir FOLDER`: copy the
    checkpoint that stands in for a repository, or the demo LoRA.
    """
    if words[:1] != ["download"] or "--local-dir" not in words:
        sys.exit(f"hf: only `download … --local-dir FOLDER` is known here, got {words}")
    repository, *rest = words[1:]
    folder, name = Path(rest[rest.index("--local-dir") + 1]), repository.split("/")[-1]
    files = rest[: next(index for index, word in enumerate(rest) if word.startswith("--"))]
    if name in CHECKPOINTS:
        source = Path(os.environ["SHELF"]) / name
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)
        if not files:  # a real download adds what is missing
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return
    if any(file.endswith(".gguf") for file in files):
        gguf_files(folder, files)
        return
    asked = [word for word in rest if "*" in word or word.endswith(".safetensors")]
    if not asked:
        sys.exit(f"hf: {repository} is no checkpoint that is known here; name LoRA files")
    loras(folder, asked)


def gguf_files(folder: Path, files: Sequence[str]) -> None:
    """Write the transformer or the text encoder of the first checkpoint as GGUF."""
    from gguf import GGMLQuantizationType as Kind

    from tests.checkpoints.foreign import renamed, stored
    from tests.checkpoints.ggufs import T5, write_gguf
    from wanpipe.checkpoints.detect import detect

    checkpoint = detect(Path(os.environ["SHELF"]) / next(iter(CHECKPOINTS)))
    for file in files:
        text = "umt5" in file
        tensors = stored(checkpoint.files["t5_encoder" if text else "model"])
        write_gguf(folder / file, renamed(tensors, T5) if text else tensors, Kind.Q8_0)
    # real ones need none: their heads have 128 numbers
    shutil.copyfile(checkpoint.configs[0], folder / "config.json")


def loras(folder: Path, asked: Sequence[str]) -> None:
    """Write every file that is asked for, by path or pattern: a LoRA for experts by its name, else
    the demo's.
    """
    shelf = Path(os.environ["SHELF"])
    for one in asked:
        names = EXPERTS if fnmatch(EXPERTS[0], Path(one).name) else (Path(one).name,)
        for name in names:
            path = folder / Path(one).parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shelf / "expert.safetensors" if name in EXPERTS else demo.LORA, path)
