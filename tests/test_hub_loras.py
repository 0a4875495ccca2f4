"""LoRAs of a repository that was downloaded: the same as their files, and found again later."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import DATA, unpack
from tests.hub_server import store_snapshot
from tests.workshop import SMALL, Place

NAME = "someone/Style"
STYLE = "style.safetensors"


@pytest.fixture
def gallery(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder with a text entry named `text`, a LoRA, and a repository with that LoRA."""
    packed = DATA / "expected/wan21-t2v/lora_files/a_lightning_down_up_alpha.safetensors.xz"
    (tmp_path / "source").mkdir()
    unpack(packed, tmp_path / "source" / f"{STYLE}.xz")
    shutil.copyfile(tmp_path / "source" / STYLE, place.root / STYLE)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    store_snapshot(tmp_path / "hub", tmp_path / "source", NAME, "1" * 40)
    place.do("encode-text", "--model", place.model, "--prompt", "a cat", "--name", "text")
    return place


def denoise(place: Place, *more: object) -> list[str]:
    """The last step of the small run."""
    words = ("denoise", "--model", place.model, "--from", "text", *SMALL, *more)
    return place.do(*words).paths


def test_a_lora_of_a_repository_is_that_of_its_file(gallery: Place) -> None:
    made = denoise(gallery, "--lora", STYLE, 0.5)
    for reference in (f"{NAME}:{STYLE}", f"{NAME}@{'1' * 40}:{STYLE}", NAME):
        assert denoise(gallery, "--lora", reference, 0.5) == made


def test_a_run_finds_its_lora_again(gallery: Place, tmp_path: Path) -> None:
    """With the document beside it: a blob of the cache has no neighbor."""
    source, peft = tmp_path / "peft", tmp_path / "source" / STYLE
    source.mkdir()
    tensors = {key: value for key, value in load_file(peft).items() if "alpha" not in key}
    save_file(tensors, source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "r": 4}))
    snapshot = store_snapshot(tmp_path / "hub", source, "someone/Peft", "2" * 40)
    file = "adapter_model.safetensors"
    [half] = denoise(gallery, "--lora", f"someone/Peft:{file}", 0.5, "--stop-at", 2)
    run = gallery.run(half)
    assert list(run.loras.values()) == [str(snapshot / file)]
    assert [lora.name for lora in run.settings.loras] == [file]
    whole = gallery.do("denoise", "--from", half)
    assert len(whole.computed("denoise")) == 2
    assert denoise(gallery, "--lora", snapshot / file, 0.5) == whole.paths


@pytest.mark.parametrize("option", ["--lora", "--lora-high", "--lora-low"])
def test_a_lora_that_is_not_there_tells_how_to_get_it(
    option: str, gallery: Place, models: object
) -> None:
    chosen = ("--model", gallery.model, "--from", "text", *SMALL)
    if option != "--lora":
        assert callable(models)
        chosen = ("--model", models("wan22-t2v-a14b"), "--from", "text", *SMALL)
    says = "run `wanpipe download someone/Style --include v2/rank64.safetensors`"
    reference = f"{NAME}:v2/rank64.safetensors"
    gallery.refuse("denoise", *chosen, option, reference, 1, code=1, says=says)
    says = "run `wanpipe download someone/Other --include 'a[[]1].safetensors'`"
    gallery.refuse(
        "denoise", *chosen, option, "someone/Other:a[1].safetensors", 1, code=1, says=says
    )
