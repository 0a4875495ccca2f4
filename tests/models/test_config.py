"""A model's config.json: files of 0.1.0 round-trip byte for byte, and invalid ones are refused."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import mutations
from tests.conftest import DATA
from tests.test_convert import Place
from tests.workshop import Models, inside
from wanpipe.checkpoints.detect import detect
from wanpipe.errors import CheckpointError
from wanpipe.models.config import ModelConfig, Quantization, read_model_config
from wanpipe.runtime.documents import decode, encode, to_builtins
from wanpipe.store.keys import canonical, key_of
from wanpipe.weights.convert import Options, convert, material_of_model
from wanpipe.weights.model import open_model

KEY = "0123456789abcdef" * 2
WRITTEN = {  # by 0.1.0, and the key of the same model with an 8-bit text encoder
    "wan21-i2v": ("wan21-i2v", "82d844fda426b60fd0e91c63f115f9c8"),
    "wan22-t2v-a14b": ("wan22-t2v-a14b", "ca99eb728f72e6e06dc3c1ad5368eb76"),
}
OVERRIDES = {"shift": 5, "guide_scale": [4, 4.5], "fps": 8}  # integers stay integers
FOUR = Quantization(bits=4, group_size=32)
Json = Any
Change = Callable[[Json], object]


def written(name: str) -> bytes:
    """Read a config.json that 0.1.0 wrote."""
    return (DATA / "configs" / f"{name}.json").read_bytes()


@pytest.fixture
def tiny(models: Models, tmp_path: Path) -> Callable[[str], Path]:
    """Copy a converted model, so that a test can change its config.json; other files are links."""

    def copied(family: str) -> Path:
        target = tmp_path / family
        shutil.copytree(models(family), target, copy_function=os.link)
        data = (target / "config.json").read_bytes()
        (target / "config.json").unlink()
        (target / "config.json").write_bytes(data)
        return target

    return copied


def change(model: Path, spoil: Change) -> None:
    """Change the config.json of a model."""
    path = model / "config.json"
    data = json.loads(path.read_bytes())
    spoil(data)
    path.write_text(json.dumps(data))


def refusal(model: Path) -> str:
    """Return the one-line error that refuses a model."""
    with pytest.raises(CheckpointError) as caught:
        open_model(model)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_config_of_0_1_0_round_trips_byte_for_byte(name: str) -> None:
    assert encode(decode(written(name), ModelConfig)) == written(name)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_conversion_writes_the_same_bytes_as_0_1_0(
    name: str, checkpoints: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoints / name, tmp_path / "checkpoint")
    quantization = None
    if name == "wan21-i2v":
        change(source, lambda data: data.update(wanpipe=OVERRIDES))
        quantization = FOUR
    options = Options(quantization=quantization)
    convert(detect(source), tmp_path / "model", KEY, options, lambda *_: None)
    ours = (tmp_path / "model" / "config.json").read_bytes()
    # 0.1.0 left out the VAE's encoder of text-to-video models
    assert "t2v" in name or ours == written(name)
    open_model(tmp_path / "model")


@pytest.mark.parametrize("name", WRITTEN)
def test_key_material_is_that_of_0_1_0(name: str) -> None:
    config = decode(written(name), ModelConfig)
    eight = Quantization(bits=8, group_size=64)
    material = material_of_model(config, Options(text_encoder=eight))
    assert key_of(material) == WRITTEN[name][1]
    defaults = json.loads(written(name))["defaults"]
    assert canonical(to_builtins(config.defaults)) == canonical(defaults)
    assert Options().to_json() == {"dtype": "bfloat16", "quantization": None}
    assert Options(quantization=FOUR).to_json() == {
        "dtype": "bfloat16",
        "quantization": {"experts": {"bits": 4, "group_size": 32}, "text_encoder": None},
    }


def config_of(name: str) -> Callable[[Json], Json]:
    """Select the dimensions of a component."""
    return lambda data: data["components"][name]["config"]


EXPERTS = ("low_noise_model", "high_noise_model")


@pytest.mark.parametrize(
    ("family", "spoil", "says"),
    [
        ("wan21-t2v", lambda data: data.update(variant="wan9\n\x1b[31m"), "got wan9"),
        ("wan21-t2v", lambda data: data.update(schema=True), "Expected `int`, got `bool`"),
        ("wan21-t2v", lambda data: data.update(schema=[2] * 999), "has schema [2, 2, 2"),
        ("wan21-t2v", lambda data: data.update(dtype="int8"), "Invalid enum value 'int8'"),
        ("wan21-t2v", lambda data: data.update(key="0" * 32 + "\n"), "`$.key`"),
        ("wan21-t2v", lambda data: data.pop("defaults"), "missing required field `defaults`"),
        ("wan21-t2v", lambda data: data.update({"a\nb": 1}), "unknown field"),
        ("wan21-t2v", lambda data: data["defaults"].update(fps=0), "`$.defaults.fps`"),
        ("wan21-t2v", lambda data: data["defaults"].update(fps=16.5), "`$.defaults.fps`"),
        ("wan21-t2v", lambda data: data["defaults"].update(shift=-1), "`$.defaults.shift`"),
        ("wan21-t2v", lambda data: data["defaults"].update(boundary=1), "`$.defaults.boundary`"),
        ("wan21-t2v", lambda data: data["defaults"].update(guide_scale=5), "`$.defaults.guide_"),
        ("wan21-t2v", lambda data: data["components"].pop("vae"), "missing required field `vae`"),
        ("wan21-t2v", lambda data: data["components"].pop("model"), "must have model, got none"),
        ("wan21-t2v", lambda data: data["components"].update(x={}), "unknown field `x`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(config=None), "vae.config`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(bytes=-1), "vae.bytes`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(hash="0"), "vae.hash`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(file="../x"), "vae.file`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(file="/x"), "vae.file`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(file=".."), "vae.file`"),
        ("wan21-t2v", lambda data: data["components"]["vae"].update(file="x\n"), "vae.file`"),
        ("wan21-t2v", lambda data: config_of("vae")(data).update(z_dim=48), "z_dim must be 16"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(heads=3), "must split into"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(heads=64), "of even width"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(freq_dim=255), "must be even"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(layers=257), "layers`"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(dim=1 << 21), "dim`"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(eps=0), "eps`"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(patch=[1, 2, 4]), "patch[2]`"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(in_dim=36), "in_dim must be"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(text_dim=32), "text_dim must"),
        ("wan21-t2v", lambda data: config_of("model")(data).update(clip_dim=32), "clip_dim must"),
        ("wan21-t2v", lambda data: config_of("t5_encoder")(data).update(heads=5), "split into"),
        ("wan21-t2v", lambda data: config_of("t5_encoder")(data).update(buckets=3), "buckets`"),
        ("wan21-t2v", lambda data: data.update(quantization={"bits": 6, "group_size": 64}), "bits"),
        ("wan21-t2v", lambda data: data.update(quantization={"bits": 4, "group_size": 96}), "96"),
        ("wan21-t2v", lambda data: data.update(variant="wan2.2-t2v-a14b"), "got model"),
        ("wan21-i2v", lambda data: data["components"].pop("vae_encoder"), "have a vae_encoder"),
        ("wan21-i2v", lambda data: data["components"].pop("clip"), "clip_dim must be"),
        ("wan21-i2v", lambda data: config_of("clip")(data).update(size=336), "size`"),
        ("wan21-i2v", lambda data: config_of("clip")(data).update(patch=15), "patch must divide"),
        ("wan21-i2v", lambda data: config_of("vae")(data).update(decoder_dim=8), "same dimensions"),
        ("wan22-t2v-a14b", lambda data: data["components"].pop(EXPERTS[0]), "got high_noise_model"),
        ("wan22-t2v-a14b", lambda data: data["defaults"].pop("boundary"), "have a boundary"),
        ("wan22-t2v-a14b", lambda data: config_of(EXPERTS[1])(data).update(eps=1e-5), "the same"),
    ],
)  # fmt: skip
def test_invalid_values_are_refused_by_name(
    family: str, spoil: Change, says: str, tiny: Callable[[str], Path]
) -> None:
    model = tiny(family)
    change(model, spoil)
    assert says in refusal(model)
    assert str(model / "config.json") in refusal(model)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b'{"components": NaN}', b"\xff", b"[" * 99999]
)
def test_an_invalid_document_is_refused(data: bytes, tiny: Callable[[str], Path]) -> None:
    model = tiny("wan21-t2v")
    (model / "config.json").write_bytes(data)
    assert "config.json" in refusal(model)


def test_a_config_that_is_not_a_file_or_too_large_is_refused(tiny: Callable[[str], Path]) -> None:
    model = tiny("wan21-t2v")
    (model / "config.json").write_bytes(b" " * (1 << 20) + b"{}")
    assert "larger than 1048576 bytes" in refusal(model)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")  # nothing writes to it, so reading would block
    assert "not a regular file" in refusal(model)
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert "cannot be read" in refusal(model)


DIMENSIONS = [
    ("wan21-i2v", ("model",), {"dim": 128}),
    ("wan21-i2v", ("model",), {"ffn_dim": 1 << 20}),
    ("wan21-i2v", ("model",), {"freq_dim": 66}),
    ("wan21-i2v", ("model",), {"layers": 256}),
    ("wan21-i2v", ("model",), {"layers": 1}),
    ("wan21-i2v", ("t5_encoder",), {"vocab": 1 << 20}),
    ("wan21-i2v", ("t5_encoder",), {"attention_dim": 1 << 20}),
    ("wan21-i2v", ("t5_encoder",), {"ffn_dim": 1 << 20}),
    ("wan21-i2v", ("t5_encoder",), {"heads": 8}),
    ("wan21-i2v", ("t5_encoder",), {"layers": 256}),
    ("wan21-i2v", ("t5_encoder",), {"buckets": 64}),
    ("wan21-flf2v", ("model",), {"ffn_dim": 1 << 20}),
    ("wan21-i2v", ("clip",), {"ffn_dim": 1 << 20}),
    ("wan21-i2v", ("clip",), {"layers": 256}),
    ("wan21-i2v", ("clip",), {"patch": 1}),
    ("wan21-i2v", ("vae", "vae_encoder"), {"encoder_dim": 1 << 20}),
    ("wan21-i2v", ("vae", "vae_encoder"), {"decoder_dim": 1 << 20}),
    ("wan22-t2v-a14b", EXPERTS, {"dim": 1 << 20}),
]


@pytest.mark.parametrize(("family", "names", "dimensions"), DIMENSIONS)
def test_dimensions_that_do_not_match_the_file_are_refused(
    family: str, names: tuple[str, ...], dimensions: Json, tiny: Callable[[str], Path]
) -> None:
    model = tiny(family)

    def change_dimensions(data: Json) -> None:
        for name in names:
            config_of(name)(data).update(dimensions)

    change(model, change_dimensions)
    assert "does not fit the dimensions in config.json" in refusal(model)


def test_quantized_files_have_the_same_dimensions(checkpoints: Path, tmp_path: Path) -> None:
    options = Options(quantization=FOUR, text_encoder=Quantization(bits=8, group_size=32))
    config = convert(detect(checkpoints / "wan22-ti2v-5b"), tmp_path, KEY, options, lambda *_: None)
    assert open_model(tmp_path).config == config


def test_widths_shared_by_two_components_are_checked_against_the_files(
    tiny: Callable[[str], Path],
) -> None:
    model = tiny("wan21-i2v")

    def change_dimensions(data: Json) -> None:
        config_of("t5_encoder")(data).update(dim=1 << 20)
        config_of("model")(data).update(text_dim=1 << 20, clip_dim=1 << 20)
        config_of("clip")(data).update(dim=1 << 20)

    change(model, change_dimensions)
    assert "t5_encoder.safetensors does not fit" in refusal(model)


LIMITED = """
import resource, sys
from tests.peak import peak_bytes
from wanpipe.app import main
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
try:
    main(sys.argv[1:])
finally:
    print(peak_bytes())
"""


def test_a_huge_model_in_a_small_file_needs_little_memory(tiny: Callable[[str], Path]) -> None:
    model = tiny("wan22-t2v-a14b")

    def change_dimensions(data: Json) -> None:
        for name in EXPERTS:
            config_of(name)(data).update(dim=1 << 20, ffn_dim=1 << 20, layers=256)
        config_of("t5_encoder")(data).update(vocab=1 << 20, ffn_dim=1 << 20, layers=256)

    change(model, change_dimensions)
    place = ["--model", str(model), "--cache", str(model / "cache")]
    words = ["encode-text", "--prompt", "x", "--quiet", *place]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "does not fit the dimensions" in done.stderr
    peak = int(done.stdout)
    assert peak < 1 << 30, peak


@pytest.mark.parametrize("more", [(), ("--force",)])
def test_a_conversion_changes_nothing_outside_its_folder(
    more: tuple[str, ...], checkpoints: Path, tmp_path: Path
) -> None:
    here = Place(tmp_path, tmp_path / "no model")
    words = ("convert", "--checkpoint-dir", checkpoints / "wan21-t2v", "--output-dir", "model")
    here.do(*words)
    for name in ("victim", "victim.json", "victim.part"):
        (tmp_path / name).write_text("dear")
    change(tmp_path / "model", lambda data: data["components"]["vae"].update(file="../victim"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused = inside(*words, *more, cwd=tmp_path)
    assert refused.code == 1
    assert "choose another directory" in refused.stderr
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if "cache" not in path.parts} == {
        path: data for path, data in before.items() if "cache" not in path.parts
    }


def containers(value: Json, found: list[Json] | None = None) -> list[Json]:
    """List every object and list of a document, itself included."""
    found = [] if found is None else found
    if isinstance(value, dict | list):
        found.append(value)
        for inner in value.values() if isinstance(value, dict) else value:
            containers(inner, found)
    return found


def change_value(dice: random.Random, data: Json) -> None:
    """Change one value of a config.json: to a similar one, another type, or another position."""
    container = dice.choice([one for one in containers(data) if one])
    name = (
        dice.choice(list(container))
        if isinstance(container, dict)
        else dice.randrange(len(container))
    )
    old = container[name]
    match dice.randrange(9):
        case 0 | 1 if isinstance(old, int | float) and abs(old) < 1e18:
            others = (-old, old + 1, old - 1, 2 * old, old / 2, float(old), str(old), old * 10**9)
            container[name] = dice.choice(others)
        case 2:
            del container[name]
        case 3 if isinstance(container, dict):
            container[dice.choice(mutations.NAMES)] = copy.deepcopy(dice.choice(mutations.ODD))
        case 4:
            container[name] = [old] if dice.random() < 0.5 else {"config": old}
        case 5:
            other = dice.choice([one for one in containers(data) if one])
            values = list(other.values() if isinstance(other, dict) else other)
            container[name] = copy.deepcopy(dice.choice(values))
        case 6 if isinstance(old, str):
            paths = ("../", "/etc/", "./", "\0", "\x1b[31m", "\n", "\u202e", ".")
            container[name] = dice.choice((dice.choice(paths) + old, old + dice.choice(paths)))
        case _:
            container[name] = copy.deepcopy(dice.choice(mutations.ODD))


def mutated(dice: random.Random, text: str) -> bytes:
    """Change a config.json in one or two values, or make it invalid JSON."""
    if dice.random() < 0.1:
        return mutations.odd_json(dice, text)
    data = json.loads(text)
    for _ in range(dice.randint(1, 2)):
        change_value(dice, data)
    return json.dumps(data).encode("utf-8", "surrogatepass")


def contains(ours: Json, data: Json) -> bool:
    """Return whether the config has all the values of the file."""
    if isinstance(data, dict):
        return isinstance(ours, dict) and all(contains(ours.get(name), data[name]) for name in data)
    return bool(ours == data) and isinstance(ours, bool) == isinstance(data, bool)


CASES = 400  # per family


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan21-i2v", "wan21-vace", "wan22-t2v-a14b", "wan22-ti2v-5b"])
def test_a_changed_config_is_refused_in_one_line_or_read_correctly(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny(family)
    path = model / "config.json"
    text, counts = path.read_text(), {True: 0, False: 0}
    commands = (
        ("encode-text", "--model", model, "--prompt", "a cat", "--dry-run"),
        ("show", model),
    )
    for seed in range(CASES):
        data = mutated(random.Random(f"{family} {seed}"), text)
        path.write_bytes(data)
        try:
            config = open_model(model).config
        except CheckpointError as error:
            assert str(error).isprintable(), (seed, error)
            valid = False
        else:
            assert contains(json.loads(encode(config)), json.loads(data)), seed
            assert read_model_config(model) == config
            valid = True
        counts[valid] += 1
        for command in commands if valid else [commands[seed % 2]]:
            done = inside(*command, cwd=tmp_path)  # raises if the user would see a traceback
            assert done.code in ((0, 1) if valid else (1,)), (seed, done.stderr)
            if done.code:
                assert len(done.stderr.splitlines()) == 1, (seed, done.stderr)
    assert counts[False] > CASES / 2
    assert counts[True] > CASES / 50
