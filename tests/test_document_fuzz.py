"""Changed documents of checkpoints, models and LoRAs, through every command that reads them: a
result, or one line, and no file that is not the cache's.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.checkpoints import mutations
from tests.checkpoints.foreign import write_diffusers
from tests.test_lora_runs import attention
from tests.workshop import SMALL, Models, Place, inside

Mutation = Callable[[random.Random, bytes], bytes]
Words = tuple[object, ...]

SECONDS = 10.0  # of processor time for whatever is refused
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "use_dora": False,
    "bias": "none", "alpha_pattern": {"blocks.0": 4}, "rank_pattern": {}, "target_modules": ["q"],
}  # fmt: skip


def as_json(dice: random.Random, data: bytes) -> bytes:
    return mutations.odd_json(dice, data.decode())


def in_metadata(dice: random.Random, data: bytes) -> bytes:
    """Change what the header of a safetensors file says of its adapter."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header["__metadata__"]
    key = dice.choice(list(metadata))
    if key == "lora_adapter_metadata" and dice.random() < 0.7:
        metadata[key] = mutations.odd_json(dice, metadata[key]).decode("utf-8", "replace")
    else:
        metadata[key] = dice.choice(("", "nan", "-inf", "1e999", "true", "[]", "8", "\0", "é" * 99))
    if dice.random() < 0.2:
        metadata[dice.choice(mutations.NAMES)] = "x"
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@dataclass(frozen=True)
class Case:
    """A document in one of the folders, how it is changed, and how often."""

    folder: str
    file: str
    mutation: Mutation
    times: int


CASES = (
    Case("model", "config.json", as_json, 300),
    Case("model", "model.safetensors", mutations.safetensors, 60),
    Case("model", "tokenizer.json", as_json, 10),
    Case("checkpoint", "config.json", as_json, 120),
    Case("checkpoint", "diffusion_pytorch_model.safetensors", mutations.safetensors, 60),
    Case("checkpoint", "google/umt5-xxl/tokenizer.json", as_json, 10),
    Case("pipeline", "model_index.json", as_json, 60),
    Case("pipeline", "transformer/config.json", as_json, 60),
    Case("peft", "adapter_config.json", as_json, 150),
    Case("lora", "adapter_model.safetensors", in_metadata, 150),
    Case("lora", "adapter_model.safetensors", mutations.safetensors, 60),
)


@pytest.fixture(scope="module")
def folders(
    models: Models, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model, checkpoints in two layouts, and a LoRA that PEFT wrote, sound as they are."""
    root = tmp_path_factory.mktemp("sound")
    for name in ("lora", "peft"):
        (root / name).mkdir()
    described = {f"transformer.{name}": value for name, value in CONFIG.items()}
    metadata = {"lora_adapter_metadata": json.dumps(described), "lora_alpha": "8", "r": "4"}
    save_file(attention("transformer."), root / "lora" / "adapter_model.safetensors", metadata)
    save_file(attention("base_model.model."), root / "peft" / "adapter_model.safetensors")
    (root / "peft" / "adapter_config.json").write_text(json.dumps(CONFIG))
    return {
        "model": models("wan21-t2v"),
        "checkpoint": checkpoints / "wan21-t2v",
        "pipeline": write_diffusers(checkpoints / "wan22-t2v-a14b", root / "pipeline"),
        "lora": root / "lora",
        "peft": root / "peft",
    }


@pytest.fixture(scope="module")
def place(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with a text entry named `text`."""
    place = Place(tmp_path_factory.mktemp("place"), models("wan21-t2v"))
    place.do("encode-text", "--model", place.model, "--prompt", "a cat", "--name", "text")
    return place


def commands(folder: Path, kind: str, model: Path) -> Iterator[Words]:
    """The commands that read a folder of this kind."""
    if kind in ("checkpoint", "pipeline"):
        yield "convert", "--checkpoint-dir", folder, "--dry-run"
    elif kind in ("lora", "peft"):
        file = folder / "adapter_model.safetensors"
        words = ("denoise", "--model", model, "--from", "text", *SMALL, "--dry-run")
        yield "show", file
        yield (*words, "--lora", folder, 0.5)
    else:
        yield "show", folder
        yield "encode-text", "--model", folder, "--prompt", "a dog", "--dry-run"
        yield "denoise", "--model", folder, "--from", "text", *SMALL, "--dry-run"
        yield "convert", "--from-model", folder, "--quantize", "--group-size", 32, "--dry-run"


def outside(root: Path) -> dict[str, bytes | None]:
    """Every file that is not of the cache, with what it holds if it is small."""
    found = {}
    for path in root.rglob("*"):
        if "cache" not in path.relative_to(root).parts:
            small = path.is_file() and path.stat().st_size < 1 << 20
            found[str(path)] = path.read_bytes() if small else None
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}-{Path(case.file).name}")
def test_a_changed_document_gives_a_result_or_one_line(
    case: Case,
    folders: dict[str, Path],
    place: Place,
    fuzz_factor: int,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    sound, folder = folders[case.folder], tmp_path / case.folder
    cases = case.times * fuzz_factor
    shutil.copytree(sound, folder, copy_function=os.link)
    file, data, codes = folder / case.file, (sound / case.file).read_bytes(), Counter[int]()
    for seed in range(cases):
        file.unlink()
        file.write_bytes(case.mutation(random.Random(f"{case.file} {seed}"), data))
        every = list(commands(folder, case.folder, place.model))
        before = outside(tmp_path)
        words = every[seed % len(every)]
        started = time.process_time()
        done = inside(*words, cwd=place.root)  # raises what a user would see as a traceback
        assert time.process_time() - started < SECONDS, (seed, words)
        assert done.code in (0, 1, 2), (seed, words, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("wanpipe: error: ")]
        assert len(errors) == (done.code != 0), (seed, words, done.stderr)
        assert "Traceback" not in done.stderr, (seed, words, done.stderr)
        assert all(line.isprintable() for line in done.stderr.split("\n")), (seed, done.stderr)
        assert outside(tmp_path) == before, (seed, words)
        codes[done.code] += 1
    assert codes[1] > cases / 6, codes
    record_property("cases", cases)
    record_property("refused", cases - codes[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}-{Path(case.file).name}")
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    case: Case, kind: str, folders: dict[str, Path], place: Place, tmp_path: Path
) -> None:
    folder = tmp_path / case.folder
    shutil.copytree(folders[case.folder], folder, copy_function=os.link)
    file = folder / case.file
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file.name)
    signal.alarm(60)  # a hang ends the tests
    try:
        for words in commands(folder, case.folder, place.model):
            done = inside(*words, cwd=place.root)
            errors = [line for line in done.stderr.splitlines() if ": error: " in line]
            assert len(errors) == 1 and done.code in (1, 2), (words, done)
    finally:
        signal.alarm(0)


def test_there_are_enough_cases() -> None:
    assert sum(case.times for case in CASES) >= 1000
