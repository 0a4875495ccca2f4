"""Keeping a cache small: what goes first, what never goes, and that runs can still be finished."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.store.builders import (
    chain,
    fill,
    fill_model,
    forbidden,
    frames,
    recipe,
    step_recipe,
    text,
)
from wanpipe.cache.gc import (
    Limits,
    Plan,
    find_leftovers,
    parse_keep_steps,
    remove,
    remove_leftovers,
)
from wanpipe.errors import UsageError
from wanpipe.store import Draft, Entry, Store
from wanpipe.store.entry import read_entry

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def used(entry: Entry, days_ago: float) -> None:
    """Say that an entry was last used some days ago."""
    moment = time.time() - days_ago * DAY
    os.utime(entry.path, (moment, moment))


def keys(plan: Plan) -> list[str]:
    return [row.key for row in plan.removed]


def test_frames_are_removed_before_interior_steps_before_last_steps_before_texts(
    store: Store,
) -> None:
    words = text(store)
    steps = chain(store, words, 4)
    film = frames(store, steps[-1])
    for days, entry in enumerate([words, steps[3], steps[1], steps[0], steps[2], film]):
        used(entry, 10 - days)
    gone = keys(Plan(store, Limits(max_bytes=0)))
    order = [film, steps[1], steps[0], steps[2], steps[3], words]
    assert gone == [entry.key for entry in order]


def test_no_more_is_removed_than_the_limit_requires(store: Store) -> None:
    made = [store.get_or_create(recipe(number), fill(number)) for number in range(6)]
    for number, entry in enumerate(made):
        used(entry, 10 - number)
    rows = store.index.read()
    total = sum(row.bytes for row in rows.values())
    half = sum(rows[f"denoise/{entry.key}"].bytes for entry in made[3:])
    plan = Plan(store, Limits(max_bytes=half))
    assert keys(plan) == [entry.key for entry in made[:3]]
    assert plan.bytes_left == half
    assert keys(Plan(store, Limits(max_bytes=total))) == []


def test_the_most_recently_used_entry_is_removed_last(store: Store) -> None:
    made = [store.get_or_create(recipe(number), fill(number)) for number in range(3)]
    for number, entry in enumerate(made):
        used(entry, 10 - number)
    store.find("denoise", made[0].key)
    assert keys(Plan(store, Limits(older_than=DAY))) == [entry.key for entry in made[1:]]


def test_names_and_pins_are_kept(store: Store) -> None:
    made = [store.get_or_create(recipe(number), fill(number)) for number in range(3)]
    store.name("cat", made[0].path)
    store.pins.set(made[1].key, f"denoise/{made[1].key}")
    assert keys(Plan(store, Limits(max_bytes=0))) == [made[2].key]


def test_a_text_stays_while_a_step_needs_it(store: Store) -> None:
    words, other = text(store), text(store, "a dog")
    last = chain(store, words, 2)[-1]
    chain(store, other, 2, seed=2)
    for entry in [words, other, *map(read_entry, store.root.glob("denoise/*"))]:
        used(entry, 50)
    store.name("cat", last.path)
    plan = Plan(store, Limits(older_than=30 * DAY))
    assert words.key not in keys(plan)
    assert other.key in keys(plan)
    assert sorted(row.stage for row in plan.left.values()) == ["denoise", "encode-text"]


@pytest.mark.parametrize(
    ("keep", "left"), [("last", [8]), ("every:3", [3, 6, 8]), ("every:1", [*range(1, 9)])]
)
def test_a_thinned_run_can_be_resumed(keep: str, left: list[int], store: Store) -> None:
    words = text(store)
    chain(store, words, 8)
    plan = Plan(store, Limits(every=parse_keep_steps(keep)))
    remove(store, plan.removed)
    rows = store.index.read().values()
    assert sorted(row.step + 1 for row in rows if row.step is not None) == left
    assert store.get_or_create(last_recipe(words), forbidden)


def last_recipe(words: Entry):
    """The recipe of the last step: all keys follow without any entry before it."""
    parent = None
    for step in range(8):
        found = step_recipe(words, step, parent)
        parent = found.key
    return found


def test_every_branch_keeps_its_last_step(store: Store) -> None:
    words = text(store)
    trunk = chain(store, words, 8)
    branch = chain(store, words, 8, after=trunk[3], guide_scale=[6.0, 6.0])
    draft = chain(store, words, 3, seed=2)
    gone = set(keys(Plan(store, Limits(every=0))))
    ends = {trunk[-1].key, branch[-1].key, draft[-1].key}
    steps = {entry.key for entry in [*trunk, *branch, *draft]}
    assert gone == steps - ends


@pytest.mark.parametrize("words", ["", "first", "every", "every:0", "every:x", "every:-1"])
def test_invalid_keep_steps_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match="keep-steps must be"):
        parse_keep_steps(words)


def test_models_are_removed_only_on_request(store: Store) -> None:
    model = store.get_or_create(recipe(stage="convert"), fill_model)
    assert keys(Plan(store, Limits(max_bytes=0))) == []
    assert keys(Plan(store, Limits(max_bytes=0, models=True))) == [model.key]


def test_entries_in_use_are_kept(store: Store) -> None:
    """A step being computed: its text and the steps found since the process began stay."""
    words = text(store)
    old = chain(store, words, 2)
    unused = store.get_or_create(recipe(), fill())
    used(unused, 1)
    kept: list[str] = []

    def meanwhile(draft: Draft) -> dict:
        plan = Plan(Store(store.root), Limits(max_bytes=0))
        kept.extend(row.key for row in plan.left.values())
        assert keys(plan) == [unused.key]
        return fill(9)(draft)

    process = Store(store.root)
    process.find("encode-text", words.key)
    for entry in old:
        process.find("denoise", entry.key)
    process.get_or_create(step_recipe(words, 2, old[-1].key), meanwhile)
    assert set(kept) == {words.key, *(entry.key for entry in old)}


def test_an_entry_used_after_the_plan_is_moved_back(store: Store) -> None:
    made = [store.get_or_create(recipe(number), fill(number)) for number in range(2)]
    for entry in made:
        used(entry, 1)
    plan = Plan(store, Limits(max_bytes=0))
    gone = []

    def meanwhile(draft: Draft) -> dict:
        assert Store(store.root).find("denoise", made[0].key)
        gone.extend(remove(Store(store.root), plan.removed))
        return fill(9)(draft)

    Store(store.root).get_or_create(recipe(5), meanwhile)
    assert [row.key for row in gone] == [made[1].key]
    assert Store(store.root).find("denoise", made[0].key)


def killed_at_work(root: Path) -> None:
    def forever(draft: Draft) -> dict:
        fill()(draft)
        os._exit(9)

    Store(root).get_or_create(recipe(7), forever)


def test_leftovers_of_dead_processes_are_removed(store: Store) -> None:
    entry = store.get_or_create(recipe(), fill())
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=killed_at_work, args=(store.root,))
    process.start()
    process.join()
    shutil.copytree(entry.path, store.root / ".damaged" / "decode-x")
    (store.root / ".tmp" / f"convert-{entry.key}").mkdir()
    found = find_leftovers(store, older_than=DAY)
    assert [path.parent.name for path in found] == [".damaged", ".tmp"]
    remove_leftovers(store, find_leftovers(store, older_than=0))
    for folder in (".tmp", ".damaged", ".locks"):
        assert not list((store.root / folder).iterdir())
    assert store.find("denoise", entry.key)


def test_a_killed_gc_loses_only_entries_it_removes(store: Store) -> None:
    made = [store.get_or_create(recipe(number), fill(number)) for number in range(4)]
    plan = Plan(store, Limits(max_bytes=0))
    removed = plan.removed[:2]
    scratch = store.root / ".tmp" / ("a" * 32)
    scratch.mkdir(parents=True)
    for row in removed:
        (store.root / row.id).rename(scratch / row.key)
    scratch.with_suffix(".lock").touch()
    again = Store(store.root)
    left = [entry for entry in made if again.find("denoise", entry.key)]
    assert len(left) == 2
    again.get_or_create(recipe(9), fill(9))
    assert not list((store.root / ".tmp").iterdir())
