"""Keys are pinned: today's code writes the material and the key that version 0.1.0 wrote.

Whoever changes one makes every user compute again. tests/data/record.py says how the values in
tests/data/golden were recorded, and of the one rule that is younger. A quantized model's components
are MLX's rounding, so of them the material is pinned and no content hash.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stages import convert, denoise
from tests.golden_runs import RUNS, Record, chain_of, golden, pinned, take, write_lora
from tests.workshop import Models, Place, inside
from wanpipe.pipeline.inputs import Inputs
from wanpipe.store import Store, key_of
from wanpipe.store.entry import read_entry
from wanpipe.weights.model import open_model

GOLDEN = golden()
CASES = [(kind, name) for kind, entries in GOLDEN.items() for name in entries]
Taken = Callable[[str], dict[str, Record]]


@pytest.fixture(scope="session")
def taken(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """Gives the records of every pinned command of a kind of model, run once."""

    @cache
    def records(kind: str) -> dict[str, Record]:
        root = tmp_path_factory.mktemp(kind)

        def run(words: list[str]) -> list[str]:
            result = inside(*words, cwd=root)
            assert result.code == 0, f"{words}: {result.stderr}"
            return result.paths

        return take(kind, checkpoints / kind, root, run)

    return records


def text_of(value: Any) -> str:
    """A value as JSON; unlike the values themselves, 5 and 5.0 differ."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_material_and_key_are_the_pinned_ones(kind: str, name: str, taken: Taken) -> None:
    assert text_of(pinned(taken(kind)[name])) == text_of(GOLDEN[kind][name])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_pinned_key_is_that_of_its_material(kind: str, name: str) -> None:
    assert key_of(GOLDEN[kind][name]["material"]) == GOLDEN[kind][name]["key"]


@pytest.mark.parametrize("kind", RUNS)
def test_every_entry_of_the_pinned_commands_is_pinned(kind: str, taken: Taken) -> None:
    assert sorted(taken(kind)) == sorted(GOLDEN[kind])


def test_different_results_have_different_keys() -> None:
    keys: dict[str, str] = {}
    for kind, name in CASES:
        text = text_of(GOLDEN[kind][name]["material"])
        assert keys.setdefault(GOLDEN[kind][name]["key"], text) == text


def test_a_model_is_the_same_bytes_in_another_folder(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints / "wan21-t2v"
    params = convert.Params(
        checkpoint_dir=checkpoint, output_dir=tmp_path / "here", dtype="bfloat16"
    )
    model = open_model(convert.run(params, Store(tmp_path / "cache")))
    hashes = {part.file: part.hash for part in model.config.components.values()}
    assert hashes == GOLDEN["wan21-t2v"]["bfloat16"]["files"]
    assert model.config.key == GOLDEN["wan21-t2v"]["bfloat16"]["key"]


def keys_of(place: Place, params: denoise.Params, model: Path | None = None) -> list[str]:
    """The keys of a run with Python's parameters, up to the last step."""
    store = Store(place.cache)
    given = Inputs(text=read_entry(place.root / place.text()))
    last = denoise.run(open_model(model or place.model), given, params, store)[0]
    return steps_to(place, last.path)


def steps_to(place: Place, last: Path) -> list[str]:
    """The keys of the steps up to an entry."""
    return [Path(path).name for path in chain_of(place.root, str(last))]


SIZE: dict[str, Any] = {"width": 32, "height": 32, "num_frames": 5, "steps": 4}


@pytest.mark.parametrize(
    ("whole", "real"),
    [
        ({"guide_scale": (5,)}, {"guide_scale": (5.0,)}),
        ({"shift": 3}, {"shift": 3.0}),
        ({"timesteps": (1000, 750, 500, 250)}, {"timesteps": (1000.0, 750.0, 500.0, 250.0)}),
        ({"steps": 10, "step_cache": 1}, {"steps": 10, "step_cache": 1.0}),
        ({"scheduler": "euler", "shift": 1}, {"scheduler": "euler", "shift": 1.0}),
    ],
)
def test_a_number_gives_one_key_however_it_is_written(
    whole: dict[str, Any], real: dict[str, Any], place: Place
) -> None:
    keys = [keys_of(place, denoise.Params(**{**SIZE, **numbers})) for numbers in (whole, real)]
    assert keys[0] == keys[1]


def test_the_strength_of_a_lora_gives_one_key_however_it_is_written(
    place: Place, tmp_path: Path
) -> None:
    write_lora(tmp_path / "style.safetensors", seed=5)
    path = tmp_path / "style.safetensors"
    keys = [
        keys_of(place, denoise.Params(**SIZE, lora=((path, strength),))) for strength in (1, 1.0)
    ]
    assert keys[0] == keys[1]


def test_a_guidance_written_as_whole_numbers_in_a_model_gives_the_same_keys(
    place: Place, tmp_path: Path
) -> None:
    config = json.loads((place.model / "config.json").read_bytes())
    assert config["defaults"]["guide_scale"] == [5.0, 5.0]
    config["defaults"]["guide_scale"] = [5, 5]
    model = tmp_path / "whole"
    model.mkdir()
    for file in place.model.iterdir():
        (model / file.name).symlink_to(file)
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plain, whole = (keys_of(place, denoise.Params(**SIZE), each) for each in (place.model, model))
    assert plain == whole


def test_guidance_1_has_no_negative_prompt_in_any_key(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-t2v-a14b"))
    base = ("encode-text", "--model", place.model, "--prompt", "a cat", "--negative-prompt")
    texts = [place.made(*base, negative) for negative in ("blurry", "dark")]
    assert texts[0] != texts[1]

    def keys(text: Path, scale: str) -> list[str]:
        size = ("--width", 32, "--height", 32, "--num-frames", 5, "--steps", 4)
        words = ("denoise", "--model", place.model, "--from", text, *size)
        return steps_to(place, place.made(*words, "--guide-scale", scale))

    assert keys(texts[0], "1") == keys(texts[1], "1")
    first, second = keys(texts[0], "4,1"), keys(texts[1], "4,1")  # guidance 1 at high noise
    assert [ours == theirs for ours, theirs in zip(first, second, strict=True)] == [
        *(True, True, True, False)
    ]
    assert set(keys(texts[0], "4")).isdisjoint(keys(texts[1], "4"))


def test_the_text_of_a_step_at_guidance_1_is_the_text_without_its_negative_part() -> None:
    entries = GOLDEN["wan21-t2v"]
    text = dict(entries["text"]["material"])
    del text["negative"]
    assert entries["guidance 1 0"]["material"]["text"] == key_of(text)
    assert entries["unipc 0"]["material"]["text"] == entries["text"]["key"]
