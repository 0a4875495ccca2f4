"""Why an entry is not there, in words that a person can act on."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.store.builders import RecordingReport, chain, fill, recipe, run_of, step_recipe, text
from wanpipe.cli.messages import describe
from wanpipe.pipeline.dry_run import DryRun
from wanpipe.pipeline.plan import expected, target
from wanpipe.runtime.documents import to_builtins
from wanpipe.store import Entry, Recipe, Store, key_of, material
from wanpipe.store.entry import read_entry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def plan(
    store: Store,
    recipes: list[Recipe],
    words: Entry | None = None,
    force: bool = False,
    **changes: Any,
) -> list[dict[str, Any]]:
    """The misses that a plan of these recipes, of a run with these changes, reports."""
    planned = Store(store.root, RecordingReport(), force=force, read_only=True)
    settings = None
    if words is not None:
        settings = run_of(words, recipes[-8:], **changes).settings
    DryRun(planned).report_targets([target(one, planned) for one in recipes], settings)
    heard = planned.report
    assert all(event["event"] in ("planned", "missing") for event in heard.events)
    assert heard.count("planned") == len(recipes)
    return [event for event in heard.events if event["event"] == "missing"]


def run(words: Entry, first: int = 0, parent: str | None = None, **changes: Any) -> list[Recipe]:
    """The recipes of a run of eight steps, from one of them on."""
    recipes: list[Recipe] = []
    for step in range(first, 8):
        recipes.append(step_recipe(words, step, parent, **changes))
        parent = recipes[-1].key
    return recipes


CHANGES = [
    ({"guide_scale": [6.0, 6.0]}, "text, seed, model: same; guidance 5.0 → 6.0"),
    ({"seed": 2}, "text, model: same; seed 1 → 2"),
    ({"shift": 3.0}, "text, seed, model: same; shift 5.0 → 3.0"),
    ({"scheduler": "euler"}, "text, seed, model: same; solver unipc → euler"),
    (
        {"seed": 3, "guide_scale": [1.0, 1.0], "scheduler": "euler"},
        "text, model: same; seed 1 → 3, guidance 5.0 → 1.0, solver unipc → euler",
    ),
]


@pytest.mark.parametrize(("changes", "reason"), CHANGES)
def test_every_field_that_differs_is_explained(
    changes: dict[str, Any], reason: str, store: Store
) -> None:
    words = text(store)
    first = chain(store, words, 8)[0]
    misses = plan(store, run(words, **changes), words, **changes)
    assert [(miss["steps"], miss["nearest"]) for miss in misses] == [(8, first.key)]
    assert misses[0]["reason"] == reason
    listed = " and ".join(reason.partition("same; ")[2].rsplit(", ", 1))
    listed = re.sub(r"(\S+ → [^ ,]+)", r"(\1)", listed)
    assert describe("missing", misses[0]) == (
        f"denoise: 8 steps to compute. Closest run: {first.key[:8]}, which differs in {listed}."
    )


def test_at_guidance_one_the_same_text_is_recognized(store: Store) -> None:
    words = text(store)
    chain(store, words, 8)
    prompt = {
        name: value for name, value in to_builtins(words.material).items() if name != "negative"
    }
    fields = to_builtins(step_recipe(words, 0, None).material)
    fields |= {"text": key_of(prompt), "guide_scale": 1.0}
    alone = Recipe(
        material=material(fields.pop("stage"), **fields), inputs={"text": words.key}, step=0
    )
    (miss,) = plan(store, [alone])
    assert miss["reason"] == "text, seed, model: same; guidance 5.0 → 1.0"


def test_prompts_replace_keys(store: Store) -> None:
    words, other = text(store), text(store, "a dog\x1b[31m")
    chain(store, words, 8)
    (miss,) = plan(store, run(other))
    assert miss["reason"] == "seed, model: same; text “a cat” → “a dog\\x1b[31m”"


def test_a_planned_prompt_is_shown(store: Store) -> None:
    chain(store, text(store), 8)
    made = {"prompt": "a bird", "negative_prompt": ""}
    there = next(store.root.glob("encode-text/*"))
    fields = to_builtins(read_entry(there).material) | {"prompt": [1]}
    bird = Recipe(material=material(**fields), made=made)
    planned = expected(bird, store)
    misses = plan(store, [bird, *run(planned)])
    assert misses[0]["reason"].startswith("prompt “a cat” → “a bird”")
    assert "text “a cat” → “a bird”" in misses[1]["reason"]
    assert [miss["steps"] for miss in misses] == [1, 8]


def test_the_nearest_is_the_one_with_fewest_differences(store: Store) -> None:
    words = text(store)
    chain(store, words, 8, seed=2, guide_scale=[4.0, 4.0])
    near = chain(store, words, 8, seed=1, guide_scale=[6.0, 6.0])
    chain(store, words, 8, seed=3, guide_scale=[7.0, 7.0])
    (miss,) = plan(store, run(words, seed=1, guide_scale=[5.0, 5.0]))
    assert miss["nearest"] == near[0].key
    assert [(one["what"], one["there"], one["wanted"]) for one in miss["differences"]] == [
        ("guidance", "6.0", "5.0")
    ]


def test_a_branch_is_compared_with_its_siblings(store: Store) -> None:
    words = text(store)
    trunk = chain(store, words, 8)
    misses = plan(store, run(words, 4, trunk[3].key, guide_scale=[6.0, 6.0]))
    assert [(miss["step"], miss["steps"], miss["nearest"]) for miss in misses] == [
        (4, 4, trunk[4].key)
    ]
    assert misses[0]["reason"] == "text, model: same; guidance 5.0 → 6.0"
    assert describe("missing", misses[0]) == (
        "denoise: 4 steps to compute, starting at step 5. "
        f"Closest run: {trunk[4].key[:8]}, which differs in guidance (5.0 → 6.0)."
    )


def test_an_interrupted_run_is_explained_as_resumed(store: Store) -> None:
    words = text(store)
    draft = chain(store, words, 3)
    (miss,) = plan(store, run(words, 3, draft[-1].key))
    assert miss["reason"] == "never taken beyond step 3"


def test_an_empty_cache_has_no_closest_entry(tmp_path: Path) -> None:
    (miss,) = plan(Store(tmp_path / "none"), [recipe()])
    assert miss["reason"] == "no denoise entry yet"
    assert not (tmp_path / "none").exists()


def test_force_is_given_as_the_reason(store: Store) -> None:
    store.get_or_create(recipe(), fill())
    (miss,) = plan(store, [recipe()], force=True)
    assert miss["reason"] == "exists, computed again by --force"


def test_a_plan_writes_nothing_and_shows_no_progress(store: Store) -> None:
    words = text(store)
    chain(store, words, 2)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    plan(store, run(words, seed=2))
    assert before == {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
