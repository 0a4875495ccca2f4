"""Where converted models go: folders of the user's, entries on other disks, caches that move; and
what never leaves its place.
"""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.checkpoints.foreign import write_comfy
from tests.test_convert import checkpoint as checkpoint  # fixtures
from tests.test_convert import here as here
from tests.workshop import Place, inside
from wanpipe.checkpoints import tokenizer_file
from wanpipe.store import Store


def test_output_directories_by_any_spelling(checkpoint: Path, here: Place) -> None:
    inner = here.root / "inner"
    inner.mkdir()
    words = ("convert", "--checkpoint-dir", checkpoint.absolute(), "--cache", here.cache)
    result = inside(*words, "--output-dir", ".", cwd=inner)
    assert result.code == 0, result.stderr
    assert (inner / "config.json").is_file()
    assert {path.name for path in here.root.iterdir()} == {"inner", "cache"}
    long = "x" * 255
    here.do("convert", "--checkpoint-dir", checkpoint, "--output-dir", long)
    assert (here.root / long / "config.json").is_file()


@pytest.mark.parametrize(
    ("directory", "says"),
    [
        ("/", "is the root of a file system"),
        ("file", "file is not a directory"),
        ("file/model", "file is not a directory"),
        ("link", "link is not a directory"),
        ("y" * 256, "File name too long"),
    ],
)
def test_an_output_directory_that_cannot_be_is_refused_at_once(
    checkpoint: Path, here: Place, directory: str, says: str
) -> None:
    (here.root / "file").touch()
    (here.root / "link").symlink_to("nowhere")
    code = 2 if directory == "/" else 1
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", directory)
    here.refuse(*words, code=code, says=says)


def test_a_file_system_that_takes_no_names_is_refused_at_once(
    checkpoint: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def picky(path: Any, *more: Any, **options: Any) -> int:
        if Path(os.fsdecode(path)).name.startswith(".model"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", picky)
    started = time.monotonic()
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    here.refuse(*words, code=1, says="model cannot be written: Invalid argument; choose another")
    assert time.monotonic() - started < 10


def test_files_of_somebody_else_are_not_overwritten(checkpoint: Path, here: Place) -> None:
    folder = here.root / "mine"
    folder.mkdir()
    (folder / "vae.safetensors").write_text("dear")
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", "mine")
    says = "mine holds vae.safetensors, which is of no model that wanpipe wrote"
    here.refuse(*words, code=1, says=says)
    here.refuse(*words, "--force", code=1, says=says)


def test_what_a_killed_conversion_leaves_in_a_folder_goes_with_the_next_run(
    checkpoint: Path, here: Place
) -> None:
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    here.do(*words)
    folder = here.root / "model"
    whole = {path.name for path in folder.iterdir()}
    left = ("vae.safetensors.json", "model.safetensors.part", ".wanpipe-0123abcd.json")
    for name in (*left, ".wanpipe-convert"):
        (folder / name).write_text("{}")
    again = here.do(*words)
    assert not again.computed()
    assert {path.name for path in folder.iterdir()} == whole
    (folder / "config.json").unlink()
    (folder / ".wanpipe-convert").touch()
    here.do(*words)
    assert {path.name for path in folder.iterdir()} == whole


@pytest.mark.parametrize("name", ["model.safetensors.part", "model.safetensors"])
def test_a_draft_that_is_a_link_does_not_lead_out_of_the_cache(
    checkpoint: Path, here: Place, name: str
) -> None:
    victim = here.root / "victim"
    victim.write_text("dear")
    victim.chmod(0o644)
    model = here.made("convert", "--checkpoint-dir", checkpoint)
    draft = here.cache / ".tmp" / f"convert-{model.name}"
    shutil.rmtree(model)
    draft.mkdir(parents=True)
    (draft / name).symlink_to(victim)
    record = {"key": model.name, "file": name, "hash": "0" * 32, "bytes": 4, "config": None}
    (draft / f"{name}.json").write_text(json.dumps(record))
    again = here.made("convert", "--checkpoint-dir", checkpoint)
    assert not (again / "model.safetensors").is_symlink()
    here.entry(again)
    shutil.rmtree(again)
    (here.root / "folder").mkdir()
    draft.symlink_to(here.root / "folder")
    here.made("convert", "--checkpoint-dir", checkpoint)
    assert not list((here.root / "folder").iterdir())
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("dear", 0o644)


def test_a_stage_on_another_disk_gets_the_model(
    checkpoint: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = here.root / "far"
    far.mkdir()
    here.cache.mkdir()
    (here.cache / "convert").symlink_to(far)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.parts[-3:-1] == ("cache", ".tmp") and "convert" in Path(target).parts:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self), None, str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    model = here.made("convert", "--checkpoint-dir", checkpoint)
    here.entry(model)
    assert {path.name for path in far.iterdir()} <= {model.name, ".tmp"}
    for folder in (here.cache / ".tmp", far / ".tmp"):
        assert not folder.exists() or not list(folder.iterdir())


def test_a_renamed_file_is_no_other_checkpoint(
    checkpoints: Path, here: Place, tmp_path: Path
) -> None:
    source = write_comfy(checkpoints / "wan22-t2v-a14b", tmp_path / "source")
    first = here.made("convert", "--checkpoint-dir", source)
    folder = source / "diffusion_models"
    high, low = folder / "wan_high_noise.safetensors", folder / "wan_low_noise.safetensors"
    high.rename(folder / "Wan2.2-A14B-HIGH.safetensors")
    (source / "vae").rename(source / "vaes")
    renamed = here.do("convert", "--checkpoint-dir", source)
    assert here.root / renamed.paths[-1] == first
    assert not renamed.computed()
    low.rename(folder / "aside")
    (folder / "Wan2.2-A14B-HIGH.safetensors").rename(low)
    (folder / "aside").rename(high)
    assert here.made("convert", "--checkpoint-dir", source) != first, "the experts are swapped"


def test_a_model_in_a_cache_that_was_moved_is_found(checkpoint: Path, here: Place) -> None:
    model = here.made("convert", "--checkpoint-dir", checkpoint, "--dtype", "float32")
    options = ("--width", 32, "--height", 32, "--num-frames", 5, "--steps", 2)
    step = here.made("run", "--prompt", "cat", "--model", model, "--output", "a.mp4", *options)
    assert step.is_file()
    moved = Place(here.root / "moved", model)
    moved.root.mkdir()
    here.cache.rename(moved.cache)
    last = Store(moved.cache).runs.all()[0].steps[-1]
    moved.do("decode", "--from", last, "--output", "b.mp4", "--force")
    text = moved.made("encode-text", "--model", model.name, "--prompt", "cat")
    again = moved.do("denoise", "--from", text, *options)
    assert not again.computed()


def test_a_tokenizer_of_a_model_from_elsewhere_is_tried_once(
    checkpoint: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = here.made("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    words = ("encode-text", "--model", model, "--prompt")
    tried = []
    real = tokenizer_file.run_limited

    def counted(*arguments: Any) -> bytes:
        tried.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(tokenizer_file, "run_limited", counted)
    here.do(*words, "one")
    assert not tried, "the conversion has tried it"
    shutil.rmtree(here.cache)
    here.do(*words, "two")
    here.do(*words, "three")
    assert len(tried) == 1
    table = json.loads((model / "tokenizer.json").read_text())
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    table["normalizer"] = {"type": "Sequence", "normalizers": [longer] * 6}
    data = json.dumps(table).encode()
    (model / "tokenizer.json").write_bytes(data)
    config = json.loads((model / "config.json").read_text())
    digest = xxhash.xxh3_128_hexdigest(data)
    config["components"]["tokenizer"].update(hash=digest, bytes=len(data))
    (model / "config.json").write_text(json.dumps(config))
    here.refuse(*words, "four", code=1, says="tokenizer.json is no tokenizer: ")
