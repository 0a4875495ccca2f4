"""LoRAs and quantized models as users run them: keys, resuming, branching, and what is refused."""

import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import DATA
from tests.workshop import SMALL, Models, Place, inside
from wanpipe.store.index_file import HashCache
from wanpipe.store.keys import hash_file

pytest_plugins = ["tests.workshop"]

STYLE, DIFF = "a_lightning_down_up_alpha.safetensors", "c_lightx2v_diff.safetensors"


@pytest.fixture
def gallery(place: Place) -> Place:
    """A folder with the tiny Wan2.1 T2V, a text entry named `text`, and two LoRAs."""
    return furnished(place)


@pytest.fixture
def pair(models: Models, tmp_path: Path) -> Place:
    """The same with the tiny Wan2.2 T2V, whose feed-forward layers are narrower, so that of the
    LoRAs only attention is kept.
    """
    place = furnished(Place(tmp_path, models("wan22-t2v-a14b")))
    for name in (STYLE, DIFF):
        tensors = load_file(place.root / name)
        save_file({key: tensors[key] for key in tensors if "attn" in key}, place.root / name)
    return place


def furnished(place: Place) -> Place:
    for name in (STYLE, DIFF):
        packed = DATA / "expected/wan21-t2v/lora_files" / f"{name}.xz"
        (place.root / name).write_bytes(lzma.decompress(packed.read_bytes()))
    place.do("encode-text", "--model", place.model, "--prompt", "a cat", "--name", "text")
    return place


def denoise(place: Place, *more: object) -> Any:
    return place.do("denoise", "--model", place.model, "--from", "text", *SMALL, *more)


def loras(place: Place, last: str) -> list[list[list[Any]]]:
    """The LoRAs in the material of every step up to `last`."""
    return [list(map(list, entry.material.loras)) for entry in place.chain(last)]


def hashed(place: Place, name: str) -> str:
    return hash_file(place.root / name)


def told(result: Any) -> list[dict[str, Any]]:
    return [event for event in result.events if event["event"] == "lora"]


def test_a_lora_is_in_every_key_and_accounted_for(gallery: Place) -> None:
    plain = denoise(gallery)
    styled = denoise(gallery, "--lora", STYLE, 0.5, "--lora", DIFF, 1)
    assert len(styled.computed("denoise")) == 4
    digests = [hashed(gallery, name) for name in (STYLE, DIFF)]
    assert loras(gallery, styled.paths[0]) == [[[digests[0], 0.5], [digests[1], 1.0]]] * 4
    assert loras(gallery, plain.paths[0]) == [[]] * 4
    first, second = told(styled)
    assert (first["applied"], second["applied"]) == (20, 37)
    assert first["ignored"] == second["ignored"] == {}
    assert (first["component"], first["strength"]) == ("model", 0.5)


def test_strength_0_is_no_lora(gallery: Place) -> None:
    plain = denoise(gallery)
    nothing = denoise(gallery, "--lora", STYLE, 0)
    assert nothing.paths == plain.paths
    assert not nothing.computed()
    again = denoise(gallery, "--lora", STYLE, 0, "--force")
    assert not told(again)
    for before, after in zip(
        gallery.chain(plain.paths[0]), gallery.chain(again.paths[0]), strict=True
    ):
        assert before.record.digest == after.record.digest


def test_a_moved_lora_changes_no_key(gallery: Place) -> None:
    first = denoise(gallery, "--lora", STYLE, 1)
    shutil.move(gallery.root / STYLE, gallery.root / "style.safetensors")
    second = denoise(gallery, "--lora", "style.safetensors", 1)
    assert second.paths == first.paths
    assert not second.computed()


def test_a_run_with_loras_is_finished_from_a_step_alone(gallery: Place) -> None:
    options = ("--lora", STYLE, 0.5, "--lora", DIFF, -0.25)
    half = denoise(gallery, *options, "--stop-at", 2)
    whole = gallery.do("denoise", "--from", half.paths[0])
    assert len(whole.computed("denoise")) == 2
    assert len(told(whole)) == 2
    assert denoise(gallery, *options).paths == whole.paths


def test_a_step_branches_with_another_lora(gallery: Place) -> None:
    half = denoise(gallery, "--lora", STYLE, 0.5, "--stop-at", 2).paths[0]
    third = gallery.do("denoise", "--from", half, "--lora", DIFF, 1, "--stop-at", 3)
    other = gallery.do("denoise", "--from", third.paths[0])  # which remembers the branch
    style, diff = [[hashed(gallery, STYLE), 0.5]], [[hashed(gallery, DIFF), 1.0]]
    assert loras(gallery, other.paths[0]) == [style, style, diff, diff]
    none = gallery.do("denoise", "--from", half, "--lora", DIFF, 0)
    assert loras(gallery, none.paths[0]) == [style, style, [], []]


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_remembered_lora_must_be_there(gallery: Place, change: str) -> None:
    half = denoise(gallery, "--lora", STYLE, 0.5, "--stop-at", 2).paths[0]
    if change == "gone":
        (gallery.root / STYLE).unlink()
    else:
        shutil.copy(gallery.root / DIFF, gallery.root / STYLE)
    says = {"gone": "and is gone; say where it is with --lora", "changed": "has changed since"}
    gallery.refuse("denoise", "--from", half, code=1, says=says[change])


def test_a_remembered_lora_that_is_not_needed_is_not_looked_for(pair: Place) -> None:
    options = ("--steps", 6, "--shift", 12, "--lora-high", STYLE, 0.5)
    half = denoise(pair, *options, "--stop-at", 4).paths[0]
    (pair.root / STYLE).unlink()
    rest = pair.do("denoise", "--from", half)
    assert rest.loaded() == ["low_noise_model"]
    assert not told(rest)


def test_another_low_noise_lora_keeps_the_high_noise_steps(pair: Place) -> None:
    options = ("--steps", 6, "--shift", 12, "--lora-high", STYLE, 0.5)
    first = denoise(pair, *options, "--lora-low", STYLE, 1)
    assert len(first.computed("denoise")) == 6
    second = denoise(pair, *options, "--lora-low", DIFF, 1)
    assert [event["step"] for event in second.computed("denoise")] == [4, 5]
    assert second.loaded() == ["low_noise_model"]
    style, diff = hashed(pair, STYLE), hashed(pair, DIFF)
    assert loras(pair, second.paths[0]) == [[[style, 0.5]]] * 4 + [[[diff, 1.0]]] * 2
    both = denoise(pair, "--steps", 6, "--shift", 12, "--lora", STYLE, 1, "--lora-low", DIFF, 2)
    expected = [[[style, 1.0]]] * 4 + [[[style, 1.0], [diff, 2.0]]] * 2
    assert loras(pair, both.paths[0]) == expected


def test_a_branch_keeps_the_other_experts_lora(pair: Place) -> None:
    options = ("--steps", 6, "--shift", 12, "--lora-high", STYLE, 0.5, "--lora-low", STYLE, 1)
    early = denoise(pair, *options, "--stop-at", 1).paths[0]
    other = pair.do("denoise", "--from", early, "--lora-low", DIFF, 1)
    expected = [[[hashed(pair, STYLE), 0.5]]] * 4 + [[[hashed(pair, DIFF), 1.0]]] * 2
    assert loras(pair, other.paths[0]) == expected


def test_run_takes_loras_too(gallery: Place) -> None:
    step = denoise(gallery, "--lora", STYLE, 0.5).paths[0]
    film = gallery.film("--lora", STYLE, 0.5, prompt="a cat")
    assert not film.computed("denoise")
    made = show(gallery, "film.mp4")
    assert made["denoise"] == Path(step).name
    digest = hashed(gallery, STYLE)
    assert made["loras"] == [{"name": STYLE, "hash": digest, "strength": 0.5, "expert": None}]
    assert str(gallery.root) not in json.dumps(made["loras"])


def show(place: Place, reference: object) -> dict[str, Any]:
    result = inside("show", reference, "--json", cwd=place.root)
    assert result.code == 0, result.stderr
    rows: dict[str, Any] = json.loads(" ".join(result.paths))
    return rows


def test_show_tells_what_a_lora_is(gallery: Place) -> None:
    rows = show(gallery, STYLE)
    assert rows["ranks"] == {"2": "16 modules", "1": "4 modules"}
    assert rows["targets"]["self_attn.q"] == rows["layers"] == 2
    assert rows["keys"]["diffusion_model.<module>.lora_down.weight"] == 20
    assert rows["made for"] == "width 64 (no released Wan model)"
    assert "not understood" not in rows
    gallery.refuse("show", gallery.model / "model.safetensors", code=1, says="is not a LoRA")


def test_show_tells_the_scale_and_where_it_is_from(gallery: Place) -> None:
    expected = {"2 (alpha tensors)": "16 modules", "0.5 (alpha tensors)": "4 modules"}
    assert show(gallery, STYLE)["scale"] == expected
    folder = gallery.root / "peft"
    folder.mkdir()
    save_file(attention("base_model.model."), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"lora_alpha": 1, "use_rslora": true}')
    (folder / "._adapter_model.safetensors").write_bytes(b"what macOS leaves")
    assert show(gallery, folder)["scale"] == {"0.5 (adapter_config.json)": "1 modules"}


def attention(prefix: str, seed: int = 0) -> dict[str, np.ndarray]:
    random, module = np.random.default_rng(seed), f"{prefix}blocks.0.self_attn.q"
    return {
        f"{module}.lora_A.weight": random.standard_normal((4, 64), np.float32),
        f"{module}.lora_B.weight": random.standard_normal((64, 4), np.float32),
    }


def test_a_folder_of_peft_is_a_lora_whose_config_is_in_the_key(gallery: Place) -> None:
    folder = gallery.root / "peft"
    folder.mkdir()
    save_file(attention("base_model.model."), folder / "adapter_model.safetensors")
    plain = denoise(gallery, "--lora", "peft", 1).paths
    (folder / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 4}')
    assert denoise(gallery, "--lora", "peft", 1).paths == plain
    (folder / "adapter_config.json").write_text('{"lora_alpha": 2, "r": 4}')
    half = denoise(gallery, "--lora", "peft", 1, "--stop-at", 2)
    assert len(half.computed()) == 2
    again = gallery.do("denoise", "--from", half.paths[0])
    assert len(again.computed()) == 2
    weaker = denoise(gallery, "--lora", folder / "adapter_model.safetensors", 1)
    assert weaker.paths == again.paths
    (folder / "adapter_config.json").unlink()
    same = denoise(gallery, "--lora", "peft", 0.5)
    found, expected = (gallery.entry(one.paths[0]).read("latent") for one in (weaker, same))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_without_the_scale_of_its_lora_does_not_go_on_with_it(gallery: Place) -> None:
    folder = gallery.root / "peft"
    folder.mkdir()
    save_file(attention("base_model.model."), folder / "adapter_model.safetensors")
    half = denoise(gallery, "--lora", "peft", 1, "--stop-at", 2).paths[0]
    (folder / "adapter_config.json").write_text('{"lora_alpha": 2, "r": 4}')
    says = "has a scale that this run did not use so far; give it with --lora"
    gallery.refuse("denoise", "--from", half, code=1, says=says)
    gallery.do("denoise", "--from", half, "--lora", "peft", 1)


def test_one_file_with_a_lora_for_each_expert_gives_each_its_own(pair: Place) -> None:
    options = ("--steps", 6, "--shift", 12)
    high, low = attention("transformer."), attention("transformer_2.", 1)
    save_file(high | low, pair.root / "both.safetensors")
    save_file(high, pair.root / "high.safetensors")
    save_file(attention("transformer.", 1), pair.root / "low.safetensors")
    both = denoise(pair, *options, "--lora", "both.safetensors", 1)
    apart = ("--lora-high", "high.safetensors", 1, "--lora-low", "low.safetensors", 1)
    expected = denoise(pair, *options, *apart)
    latents = [pair.entry(one.paths[0]).read("latent") for one in (both, expected)]
    np.testing.assert_array_equal(*latents)
    assert [event["applied"] for event in told(both)] == [1, 1]
    used = [one[0][0] for one in loras(pair, both.paths[0])]
    assert len(set(used)) == 2
    assert used[0] == hashed(pair, "both.safetensors")
    third = denoise(pair, *options, "--lora", "both.safetensors", 1, "--stop-at", 3).paths[0]
    rest = pair.do("denoise", "--from", third)
    assert rest.paths == both.paths, "a run remembers both halves"
    other = pair.do("denoise", "--from", third, "--lora", "low.safetensors", 1)
    style = [[[hashed(pair, "low.safetensors"), 1.0]]]
    assert loras(pair, other.paths[0])[3:] == style * 3, "another --lora replaces both halves"
    rows = show(pair, "both.safetensors")
    assert (
        rows["high noise: scale"]
        == rows["low noise: scale"]
        == {"1 (no alpha is given)": "1 modules"}
    )


def test_a_lora_for_two_experts_needs_a_model_with_two(gallery: Place) -> None:
    tensors = attention("transformer.") | attention("transformer_2.")
    save_file(tensors, gallery.root / "both.safetensors")
    start = ("denoise", "--model", gallery.model, "--from", "text", *SMALL)
    says = "is for the two experts of Wan2.2 A14B, wan2.1-t2v-1.3b has one transformer"
    gallery.refuse(*start, "--lora", "both.safetensors", 1, code=1, says=says)


def test_loras_that_cannot_be_are_refused_before_anything_is_loaded(gallery: Place) -> None:
    start = ("denoise", "--model", gallery.model, "--from", "text", *SMALL)
    tensors = {
        "blocks.0.self_attn.q.lora_A.weight": np.ones((4, 1536), np.float32),
        "blocks.0.self_attn.q.lora_B.weight": np.ones((1536, 4), np.float32),
    }
    save_file(tensors, gallery.root / "wide.safetensors")
    (gallery.root / "text.safetensors").write_text("no LoRA")
    refuse: Callable[..., None] = gallery.refuse
    (gallery.root / "folder").mkdir()
    refuse(*start, "--lora", "folder", 1, code=2, says="folder must hold adapter_model.safetensors")
    refuse(*start, "--lora", "none", 1, code=2, says="LoRA none is not a file; give the path")
    refuse(*start, "--lora", STYLE, "nan", code=2, says="must be a finite number")
    refuse(*start, "--lora", STYLE, "much", code=2, says="'much' is not a valid float")
    refuse(*start, "--lora-low", STYLE, 1, code=2, says="has one; use --lora")
    refuse(*start, "--lora", "wide.safetensors", 1, code=1, says="it is for width 1536 (Wan2.1")
    refuse(*start, "--lora", "text.safetensors", 1, code=1, says="is no safetensors file")


def quantized(place: Place, *options: object) -> Path:
    return place.made("convert", "--from-model", place.model, *options)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model_runs_end_to_end(gallery: Place, bits: int) -> None:
    options = ("--bits", bits, "--group-size", 32)
    both = ("--quantize", "--quantize-text-encoder")
    result = gallery.do("convert", "--from-model", gallery.model, *both, *options)
    told = [event for event in result.events if event["event"] == "quantized"]
    assert {event["component"] for event in told} == {"model", "t5_encoder"}
    assert len(told) == 10 + 7
    limit = {4: 0.1, 8: 0.006}[bits]
    assert all(limit / 2 < event["relative_error"] < limit for event in told)
    twin = Place(gallery.root, gallery.root / result.paths[0])
    film = twin.film("--lora", DIFF, 0.5)
    for stage, count in (("encode-text", 1), ("denoise", 4), ("decode", 1)):
        assert len(film.computed(stage)) == count
    assert film.loaded() == ["model", "vae"]
    rows = show(gallery, twin.model)
    assert rows["quantization"] == f"{bits} bits in groups of 32"
    assert f"{bits} bits" in rows["component t5_encoder"]
    assert "bits" not in rows["component vae"]


def test_only_the_steps_of_a_quantized_model_have_other_keys(gallery: Place) -> None:
    twin = Place(gallery.root, quantized(gallery, "--quantize", "--bits", 8))
    plain, fewer = gallery.film(), twin.film()
    assert not fewer.computed("encode-text")
    assert len(fewer.computed("denoise")) == 4
    frames = [gallery.frames(film).astype(int) for film in (plain, fewer)]
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 3


def test_quantizing_options_that_cannot_be_are_refused(gallery: Place, checkpoints: Path) -> None:
    refuse, model = gallery.refuse, ("convert", "--from-model", gallery.model)
    original = ("convert", "--checkpoint-dir", checkpoints / "wan21-t2v")
    refuse(*original, "--bits", 4, code=2, says="add --quantize or --quantize-text-encoder")
    refuse(*original, "--group-size", 32, code=2, says="add --quantize or")
    refuse(*original, "--quantize", "--bits", 5, code=2, says="'5' is not one of")
    refuse(*model, code=2, says="--from-model is for quantizing")
    refuse(*model, "--quantize", "--dtype", "float16", code=2, says="a model keeps its own")
    refuse(*model, *original[1:], "--quantize", code=2, says="or --from-model, not both")
    wide = ("--quantize", "--group-size", 128)
    refuse(*model, *wide, code=2, says="(64, 128), got 128; use 32 or 64")
    twin = quantized(gallery, "--quantize")
    again = ("convert", "--from-model", twin, "--quantize")
    refuse(*again, code=2, says="quantized already")


def test_a_checkpoint_and_its_model_are_quantized_under_different_keys(
    gallery: Place, checkpoints: Path
) -> None:
    original = ("convert", "--checkpoint-dir", checkpoints / "wan21-t2v", "--dtype", "float32")
    ways = ((), ("--quantize",), ("--quantize", "--bits", 8), ("--quantize-text-encoder",))
    made = [gallery.made(*original, *way, *(("--group-size", 32) if way else ())) for way in ways]
    made.append(quantized(gallery, "--quantize", "--group-size", 32))
    assert len(set(made)) == len(made)
    files = [(path / "model.safetensors").read_bytes() for path in made]
    assert files[1] == files[4]
    assert files[0] == files[3]
    assert not gallery.do(*original, "--quantize", "--group-size", 32).computed()


def test_a_lora_is_hashed_once_in_a_run_that_plans_first(
    gallery: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashings: list[Path] = []

    def counted(path: Path) -> str:
        hashings.append(path)
        return hash_file(path)

    monkeypatch.setattr(HashCache.hash, "__defaults__", (counted,))
    gallery.film("--lora", gallery.root / STYLE, 1)
    assert [path.name for path in hashings].count(STYLE) == 1
