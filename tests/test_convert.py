"""convert: a checkpoint to a model, once."""

import json
import lzma
import os
import shutil
from pathlib import Path

import pytest
import xxhash

from tests.conftest import DATA
from tests.workshop import SMALL, Place, inside

BAD = DATA / "bad"
MARKER = Path("/tmp/fx_pwned")
SHARD = "diffusion_pytorch_model.safetensors"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"


@pytest.fixture
def checkpoint(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Wan2.1 T2V, to damage."""
    return shutil.copytree(checkpoints / "wan21-t2v", tmp_path / "checkpoint")


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """An empty folder, without a model."""
    (tmp_path / "here").mkdir()
    return Place(tmp_path / "here", tmp_path / "no model")


def test_the_same_checkpoint_again_has_nothing_to_do(checkpoint: Path, here: Place) -> None:
    first = here.do("convert", "--checkpoint-dir", checkpoint)
    again = here.do("convert", "--checkpoint-dir", checkpoint)
    assert len(first.computed()) == 1
    assert not again.computed()
    assert again.paths == first.paths
    assert [event["event"] for event in again.events if event["event"] == "reused"] == ["reused"]


def test_a_copied_checkpoint_is_the_same_model(
    checkpoint: Path, here: Place, tmp_path: Path
) -> None:
    first = here.do("convert", "--checkpoint-dir", checkpoint)
    copy = shutil.copytree(checkpoint, tmp_path / "downloads" / "Wan 2.1")
    assert here.do("convert", "--checkpoint-dir", copy).paths == first.paths


def test_another_dtype_is_another_model(checkpoint: Path, here: Place) -> None:
    paths = {
        here.do("convert", "--checkpoint-dir", checkpoint, "--dtype", dtype).paths[0]
        for dtype in ("bfloat16", "float16", "float32")
    }
    assert len(paths) == 3


def test_an_output_directory_holds_the_model_that_the_cache_would(
    checkpoint: Path, here: Place
) -> None:
    entry = here.made("convert", "--checkpoint-dir", checkpoint)
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    made = here.do(*words)
    assert made.paths == ["model"]
    for file in ("config.json", "tokenizer.json", "model.safetensors", "vae.safetensors"):
        assert (here.root / "model" / file).read_bytes() == (entry / file).read_bytes()
    assert not here.do(*words).computed()


def test_an_output_directory_with_another_model_is_refused(checkpoint: Path, here: Place) -> None:
    words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    here.do(*words)
    here.refuse(*words, "--dtype", "float32", "--quiet", code=1, says="holds another model")


def test_model_version_insists(checkpoint: Path, here: Place) -> None:
    words = ("convert", "--checkpoint-dir", checkpoint, "--model-version")
    here.refuse(*words, "2.2", code=1, says="--model-version says 2.2")
    here.do(*words, "2.1")


def test_a_model_may_have_the_name_of_its_checkpoints_folder(checkpoint: Path, here: Place) -> None:
    folder = here.root / "wan"
    shutil.copytree(checkpoint, folder)
    model = here.made("convert", "--checkpoint-dir", "wan", "--name", "wan")
    text = here.made("encode-text", "--model", "wan", "--prompt", "x")
    assert text == here.made("encode-text", "--model", model, "--prompt", "x")
    shown = [inside("show", one, cwd=here.root).paths for one in ("wan", model)]
    assert shown[0][2:] == shown[1][2:]
    shutil.rmtree(folder)  # a model in the folder comes before the name
    shutil.copytree(model, folder)
    assert inside("show", "wan", cwd=here.root).paths[:2] == ["model", "wan"]


def test_a_name_stands_for_the_model(checkpoint: Path, here: Place) -> None:
    here.do("convert", "--checkpoint-dir", checkpoint, "--name", "tiny")
    assert here.do("encode-text", "--model", "tiny", "--prompt", "x").computed()


def test_a_dry_run_reads_the_checkpoint_and_writes_nothing(checkpoint: Path, here: Place) -> None:
    for more in ((), ("--output-dir", "model")):
        plan = here.do("convert", "--checkpoint-dir", checkpoint, *more, "--dry-run")
        assert [event["status"] for event in plan.events if event["event"] == "planned"] == [
            "to compute"
        ]
    assert not [path for path in here.root.rglob("*") if path.name not in ("cache", ".index")]


def test_a_model_stays_when_its_checkpoint_goes(checkpoint: Path, here: Place) -> None:
    model = here.made("convert", "--checkpoint-dir", checkpoint)
    shutil.rmtree(checkpoint)
    assert here.do("encode-text", "--model", model, "--prompt", "x").computed()


def test_a_damaged_component_is_refused_where_it_cannot_be_made_again(
    checkpoint: Path, here: Place
) -> None:
    here.do("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    file = here.root / "model" / "t5_encoder.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.chmod(0o644)
    file.write_bytes(data)
    failed = inside("encode-text", "--model", "model", "--prompt", "x", cwd=here.root)
    assert failed.code == 1
    assert "does not have the content hash" in failed.stderr.splitlines()[-1]
    assert not list(here.cache.glob("encode-text/*"))
    here.do("convert", "--checkpoint-dir", checkpoint, "--output-dir", "model")
    assert here.do("encode-text", "--model", "model", "--prompt", "x").computed()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every hash that is computed piece by piece, as those of files are."""
    plain, done = xxhash.xxh3_128, []

    class Noting:
        """Hashes as the library does, and notes the result."""

        def __init__(self) -> None:
            self.state = plain()

        def update(self, data: bytes) -> None:
            self.state.update(data)

        def hexdigest(self) -> str:
            done.append(self.state.hexdigest())
            return done[-1]

    monkeypatch.setattr(xxhash, "xxh3_128", Noting)
    return done


@pytest.mark.parametrize("where", [(), ("--output-dir", "model")])
def test_what_was_just_converted_is_not_read_again_to_be_recognized(
    where: tuple[str, ...], checkpoint: Path, here: Place, hashed: list[str]
) -> None:
    model = here.made("convert", "--checkpoint-dir", checkpoint, *where)
    config = json.loads((model / "config.json").read_text())
    every = {one["hash"]: one["file"] for one in config["components"].values()}
    # the tokenizer is also a file of the checkpoint, which may be hashed again
    components = {digest: file for digest, file in every.items() if file != "tokenizer.json"}
    assert {components[one] for one in hashed if one in components} == set(components.values())
    hashed.clear()
    film = ("--prompt", "x", *SMALL, "--output", "film.mp4")
    assert here.do("run", "--model", model, *film).computed("decode")
    here.do("convert", "--checkpoint-dir", checkpoint, *where)
    assert not [components[one] for one in hashed if one in components]
    os.utime(model / "model.safetensors", (1e9, 1e9))
    here.do("convert", "--checkpoint-dir", checkpoint, *where)
    assert [components[one] for one in hashed if one in components] == ["model.safetensors"]


def cut(file: Path) -> None:
    """Cut a file short, as a broken download does."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


def breaks(checkpoint: Path, what: str) -> None:
    """Break a copy of a checkpoint in the way that is named."""
    match what:
        case "no VAE":
            (checkpoint / VAE).unlink()
        case "no T5":
            (checkpoint / T5).unlink()
        case "no transformer":
            (checkpoint / SHARD).unlink()
        case "no config.json":
            (checkpoint / "config.json").unlink()
        case "wrong dims":
            shutil.copyfile(BAD / "wrong_dim" / "config.json", checkpoint / "config.json")
        case "config.json is no JSON":
            (checkpoint / "config.json").write_text("{")
        case "cut safetensors":
            cut(checkpoint / SHARD)
        case "cut VAE":
            cut(checkpoint / VAE)
        case "cut T5":
            cut(checkpoint / T5)
        case "empty VAE":
            (checkpoint / VAE).write_bytes(b"")
        case "legacy VAE":
            data = lzma.decompress((BAD / "legacy_format.pth.xz").read_bytes())
            (checkpoint / VAE).write_bytes(data)
        case "hostile VAE":
            shutil.copyfile(BAD / "os_system.pth", checkpoint / VAE)
        case "hostile T5":
            shutil.copyfile(BAD / "os_system.pth", checkpoint / T5)
        case "a folder for the VAE":
            (checkpoint / VAE).unlink()
            (checkpoint / VAE).mkdir()
        case "tokenizer is no tokenizer":
            (checkpoint / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("command", ["convert", "run"])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no VAE", "lacks Wan2.1_VAE.pth"),
        ("no T5", f"lacks {T5}"),
        ("no transformer", f"lacks {SHARD}"),
        ("no config.json", "config.json"),
        ("wrong dims", "dim"),
        ("config.json is no JSON", "config.json"),
        ("cut safetensors", SHARD),
        ("cut VAE", VAE),
        ("cut T5", T5),
        ("empty VAE", VAE),
        ("legacy VAE", VAE),
        ("hostile VAE", "posix.system"),
        ("hostile T5", "posix.system"),
        ("a folder for the VAE", VAE),
        ("tokenizer is no tokenizer", "tokenizer"),
    ],
)
def test_a_broken_checkpoint_is_refused(
    what: str, says: str, command: str, checkpoint: Path, here: Place
) -> None:
    MARKER.unlink(missing_ok=True)
    breaks(checkpoint, what)
    prompt = ("--prompt", "x") if command == "run" else ()
    words = (command, "--checkpoint-dir", checkpoint, *prompt, "--quiet")
    here.refuse(*words, code=1, says=says)
    assert not MARKER.exists()


@pytest.mark.parametrize("command", ["convert", "run"])
def test_a_missing_checkpoint_is_refused(command: str, here: Place) -> None:
    prompt = ("--prompt", "x") if command == "run" else ()
    says = "nowhere is not a directory"
    here.refuse(command, "--checkpoint-dir", "nowhere", *prompt, code=1, says=says)


def test_q_is_short_for_quantize_and_bits(checkpoint: Path, here: Place) -> None:
    convert = ("convert", "--checkpoint-dir", checkpoint, "--group-size", 32)
    for bits in (4, 8):
        path = here.do(*convert, "--quantize", "--bits", bits).paths
        for more in ((), ("--quantize",), ("--bits", bits)):
            assert here.do(*convert, "-q", bits, *more).paths == path
    here.refuse(*convert, "-q", 4, "--bits", 8, code=2, says="got --bits 8; leave one out")
    here.refuse(*convert, "-q", 5, code=2, says="'5' is not one of '4', '8'")


def test_q_in_run_is_for_a_checkpoint(checkpoint: Path, here: Place) -> None:
    convert = ("--checkpoint-dir", checkpoint, "-q", 4, "--group-size", 32)
    model = here.do("convert", *convert).paths[0]
    film = here.do("run", *convert, "--prompt", "a cat", *SMALL, "--output", "x.gif")
    assert model in film.stderr  # found, not converted again
    run = ("run", "--model", model, "--prompt", "a cat", "--output", "y.gif")
    here.refuse(*run, "-q", 4, code=2, says="a model is quantized when it is converted; give")
