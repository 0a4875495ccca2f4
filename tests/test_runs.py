"""Runs: what a user asked for, kept beside the steps, and that no step decides it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.store.builders import chain, frames, text
from tests.workshop import SMALL, Models, Place, inside
from wanpipe.cache.gc import Limits, Plan, remove, unreferenced_runs
from wanpipe.cache.verify import find_damaged
from wanpipe.errors import StoreError
from wanpipe.models.config import read_model_config
from wanpipe.store import Store
from wanpipe.store.keys import hash_file
from wanpipe.store.runs import Video


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def remarks(result) -> list[str]:
    return [event["text"] for event in result.events if event["event"] == "remark"]


def test_a_run_has_its_settings_and_all_its_steps(place: Place) -> None:
    words = ("denoise", "--from", place.text(), *SMALL, "--seed", 3, "--shift", 4)
    draft = place.made(*words, "--stop-at", 2)
    run = place.run(draft)
    assert (run.seed, run.settings.shift, run.settings.steps, run.prompt) == (
        *(3, 4.0, 4, "a cat plays the piano"),
    )
    assert run.model.directory == str(place.model)
    last = place.made("denoise", "--from", draft)
    assert [step.key for step in place.chain(last)] == run.steps
    assert place.run(last) == run, "the run went on, and is the same"


def test_a_seed_of_any_size_is_saved(place: Place) -> None:
    draft = place.made("denoise", "--from", place.text(), *SMALL, "--seed", 2**70, "--stop-at", 1)
    assert place.run(draft).seed == 2**70
    last = place.do("denoise", "--from", draft, "--stop-at", 2)
    assert [event["step"] for event in last.computed()] == [1]
    assert f"seed {2**70}" in " ".join(place.do("cache", "ls").paths)


def test_a_run_resolves_to_its_last_step(place: Place) -> None:
    draft = place.made("denoise", "--from", place.text(), *SMALL, "--stop-at", 2)
    key = place.run(draft).key
    finished = place.made("denoise", "--from", key[:10])
    assert finished.name == place.run(draft).last
    place.do("decode", "--from", key, "--output", "film.mp4")
    assert [Path(video.path).name for video in place.run(draft).videos] == ["film.mp4"]
    shown = json.loads(" ".join(inside("show", key, "--json", cwd=place.root).paths))
    assert shown["run"] == key
    assert shown["steps"] == "4 of 4 in the cache"


def test_a_branch_is_a_run_of_its_own(place: Place) -> None:
    trunk = place.made("denoise", "--from", place.text(), *SMALL, "--stop-at", 2)
    branch = place.made("denoise", "--from", trunk, "--guide-scale", 2)
    assert place.run(branch).start == trunk.name
    assert place.run(branch).first == 2
    assert place.run(branch).steps == [step.key for step in place.chain(branch)[2:]]
    assert place.run(trunk).settings.guide_scale != place.run(branch).settings.guide_scale
    assert place.do("denoise", "--from", trunk).computed(), "the trunk goes on as it was"


@pytest.fixture
def pair(models: Models, tmp_path: Path) -> Place:
    """A place with the model of two experts, and two runs that share the high-noise steps."""
    place = Place(tmp_path, models("wan22-t2v-a14b"))
    words = ("denoise", "--from", place.text(), *SMALL, "--steps", 6)
    for low in (3, 7):
        place.do(*words, "--guide-scale", f"{low},4")
    return place


def test_a_shared_step_is_resumed_in_the_latest_run(pair: Place) -> None:
    runs = Store(pair.cache).runs.all()
    first = runs[0].steps[0]
    assert [run.settings.guide_scale[0] for run in runs] == [7.0, 3.0]
    assert all(first in run.steps for run in runs)
    result = pair.do("denoise", "--from", first)
    assert Path(result.paths[-1]).name == runs[0].last
    assert "belongs to 2 runs; taking the latest" in remarks(result)[0]
    assert runs[1].key[:8] in remarks(result)[0]


def test_the_run_of_a_shared_step_can_be_chosen(pair: Place) -> None:
    latest, other = Store(pair.cache).runs.all()
    result = pair.do("denoise", "--from", latest.steps[0], "--from", other.key)
    assert Path(result.paths[-1]).name == other.last
    assert not result.computed()
    assert not remarks(result)
    own = next(key for key in other.steps if key not in latest.steps)
    words = ("denoise", "--from", own, "--from", latest.key)
    pair.refuse(*words, code=2, says="is not one of run")


def other_vae(model: Path, target: Path) -> Path:
    """A copy of a model with another decoder."""
    shutil.copytree(model, target)
    file = target / "vae.safetensors"
    data = bytearray(file.read_bytes())
    data[-40:] = np.frombuffer(data[-40:], np.float32).__mul__(np.float32(1.5)).tobytes()
    file.write_bytes(data)
    config = json.loads((target / "config.json").read_text())
    config["components"]["vae"]["hash"] = hash_file(file)
    config["key"] = "a" * 32
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_two_models_that_differ_in_the_vae_alone_share_steps_and_both_decode(
    place: Place, tmp_path: Path
) -> None:
    twin = Place(place.root, other_vae(place.model, tmp_path / "twin"))
    first = place.film()
    second = twin.film()
    assert not second.computed("denoise")
    assert len(second.computed("decode")) == 1
    assert not np.array_equal(place.frames(first), twin.frames(second))
    last = first.computed("denoise")[-1]["path"]
    for model in (place.model, twin.model):
        made = place.do("decode", "--from", last, "--model", model, "--output", "again.mp4")
        assert not made.computed()


def test_the_model_defaults_to_the_last_used_one_that_fits(place: Place, tmp_path: Path) -> None:
    text = place.text()
    copy = tmp_path / "twin"
    other_vae(place.model, copy)
    Place(place.root, copy).text()
    result = place.do("denoise", "--from", text, *SMALL, "--stop-at", 1)
    assert place.run(result.paths[-1]).model.directory == str(copy)
    assert "2 models fit; taking the latest used" in remarks(result)[0]
    assert read_model_config(copy).key == "a" * 32


def test_a_model_in_a_moved_cache_is_found(tmp_path: Path, checkpoints: Path) -> None:
    old = Place(tmp_path / "old", Path("unused"))
    old.root.mkdir()
    model = old.made("convert", "--checkpoint-dir", checkpoints / "wan21-t2v")
    text = Place(old.root, model).text()
    draft = old.made("denoise", "--from", text, "--model", model, *SMALL, "--stop-at", 1)
    old.root.rename(tmp_path / "new")
    new = Place(tmp_path / "new", Path("unused"))
    last = new.do("denoise", "--from", draft.name, "--stop-at", 2)
    assert [event["step"] for event in last.computed()] == [1]
    again = new.do("denoise", "--from", text.name, *SMALL, "--seed", 5, "--stop-at", 1)
    assert new.run(again.paths[-1]).model.directory == str(new.cache / "convert" / model.name)


def test_notes_of_a_step_decide_nothing(studio: Place) -> None:
    step = next((studio.cache / "denoise").iterdir())
    noted = json.loads((step / "zarr.json").read_bytes())["attributes"]["wanpipe"]["made"]
    assert not noted.keys() & {"settings", "seed", "vae", "lora_files", "model", "fps", "lineage"}


def test_a_step_without_a_run_is_a_one_line_error(studio: Place) -> None:
    shutil.rmtree(studio.cache / ".runs")
    step = next((studio.cache / "denoise").iterdir())
    words = ("denoise", "--from", step.name, "--model", studio.model)
    studio.refuse(*words, code=1, says="no run in")


def test_a_false_record_is_invalid_and_verify_reports_it(store: Store) -> None:
    steps = chain(store, text(store), 2)
    (run,) = store.runs.of(steps[0].key)
    path = store.runs.path(run.key)
    good = path.read_text()
    for bad in (good.replace('"shift": 5.0', '"shift": 6.0'), good[:-9], "[]", '{"key": "x"}'):
        path.write_text(bad)
        assert not store.runs.of(steps[0].key)
        with pytest.raises(StoreError, match=r"\.json"):
            store.runs.get(run.key)
        assert [place for place, _ in find_damaged(store)] == [path]
    path.write_text(good)
    assert store.runs.of(steps[0].key) == [run]


def test_using_a_run_again_keeps_its_videos(store: Store) -> None:
    steps = chain(store, text(store), 2)
    (run,) = store.runs.of(steps[0].key)
    store.save_video(run, Video(path="/a.mp4", frames="f" * 32, fps=16.0))
    store.save_run(run)
    assert [video.path for video in store.runs.get(run.key).videos] == ["/a.mp4"]


def test_gc_removes_a_run_without_steps_and_frames(store: Store) -> None:
    steps = chain(store, text(store), 3)
    frames(store, steps[-1])
    (run,) = store.runs.of(steps[0].key)
    import os

    os.utime(store.runs.path(run.key), (1, 1))
    assert unreferenced_runs(store, store.index.read().values()) == []
    plan = Plan(store, Limits(max_bytes=0))
    remove(store, plan.removed)
    assert unreferenced_runs(store, plan.left.values()) == [run.key]
