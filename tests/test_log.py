"""The tree of a run: each branch is drawn once, with its differences at its first step."""

import re
from pathlib import Path

import pytest

from stages import log
from tests.store.builders import chain, fill_model, frames, recipe, text
from tests.workshop import inside
from wanpipe.errors import UsageError
from wanpipe.store import Entry, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def drawn(store: Store, entry: Entry) -> list[str]:
    """The tree without ages."""
    return [re.sub(r"  \d+ s$", "", line) for line in log.run(entry.key, store)]


def test_a_straight_run_is_a_straight_line(store: Store) -> None:
    steps = chain(store, text(store), 8)
    assert drawn(store, steps[-1]) == [
        f"* {steps[7].key[:8]}  step 8/8  (this one)",
        ": 6 steps",
        f"* {steps[0].key[:8]}  step 1/8",
        "o seed 1, “a cat”, 832x480, 81 frames, guidance 5.0",
    ]


def test_a_branch_leaves_the_trunk_at_its_first_step(store: Store) -> None:
    words, other = text(store), text(store, "a dog")
    trunk = chain(store, words, 8)
    strong = chain(store, words, 8, after=trunk[3], guide_scale=[6.0, 6.0])
    dog = chain(store, other, 6, after=trunk[3])
    film = frames(store, trunk[-1])
    store.name("best", trunk[-1].path)
    assert drawn(store, trunk[3]) == [
        f"* {trunk[7].key[:8]}  step 8/8  (best)  frames {film.key[:8]}",
        ": 2 steps",
        f"* {trunk[4].key[:8]}  step 5/8",
        f"| * {strong[3].key[:8]}  step 8/8  guidance 6.0",
        "| : 2 steps",
        f"| * {strong[0].key[:8]}  step 5/8  guidance 6.0",
        "|/",
        f"| * {dog[1].key[:8]}  step 6/8  “a dog”",
        f"| * {dog[0].key[:8]}  step 5/8  “a dog”",
        "|/",
        f"* {trunk[3].key[:8]}  step 4/8  (this one)",
        ": 2 steps",
        f"* {trunk[0].key[:8]}  step 1/8",
        "o seed 1, “a cat”, 832x480, 81 frames, guidance 5.0",
    ]


def test_a_branch_of_a_branch_is_drawn_next_to_it(store: Store) -> None:
    words = text(store)
    trunk = chain(store, words, 4)
    branch = chain(store, words, 4, after=trunk[0], guide_scale=[6.0, 6.0])
    chain(store, words, 4, after=branch[0], guide_scale=[7.0, 7.0])
    marks = [re.match(r"[|*:o/ ]+", line)[0].rstrip() for line in drawn(store, trunk[0])]  # type: ignore[index]
    assert marks == ["*", ":", "*", "| *", "| *", "| | *", "| | *", "| |/", "| *", "|/", "*", "o"]


def test_every_entry_of_a_tree_draws_the_same_tree(store: Store) -> None:
    words = text(store)
    trunk = chain(store, words, 5)
    branch = chain(store, words, 5, after=trunk[1], guide_scale=[6.0, 6.0])
    film = frames(store, branch[-1])
    ends = [trunk[-1], branch[-1]]
    trees = [[line.replace("  (this one)", "") for line in drawn(store, end)] for end in ends]
    assert trees[0] == trees[1] == drawn(store, film)


def test_a_text_draws_every_run_that_uses_it(store: Store) -> None:
    words = text(store)
    for seed in (1, 2, 3):
        chain(store, words, 2, seed=seed)
    chain(store, text(store, "a dog"), 2, seed=4)
    lines = drawn(store, words)
    assert sorted(line for line in lines if line[:1] == "o") == [
        f"o seed {seed}, “a cat”, 832x480, 81 frames, guidance 5.0" for seed in (1, 2, 3)
    ]
    assert lines.count("") == 2


def test_removed_steps_do_not_hide_the_remaining_ones(store: Store) -> None:
    import shutil

    words = text(store)
    trunk = chain(store, words, 5)
    branch = chain(store, words, 5, after=trunk[2], guide_scale=[6.0, 6.0])
    for entry in (*trunk[:3], branch[0]):
        shutil.rmtree(entry.path)
    lines = drawn(store, trunk[-1])
    assert lines[0].startswith(f"* {trunk[4].key[:8]}  step 5/5") or "step 5/8" in lines[0]
    assert f"* {trunk[2].key[:8]}  removed" in lines
    shutil.rmtree(words.path)
    assert f"text {words.key[:8]}" in drawn(store, trunk[-1])[-1]


def test_an_entry_without_steps_is_a_one_line_error(store: Store) -> None:
    words = text(store)
    model = store.get_or_create(recipe(stage="convert"), fill_model)
    with pytest.raises(UsageError, match=r"no step in .* was made from"):
        list(log.run(words.key, store))
    with pytest.raises(UsageError, match="log takes a step"):
        list(log.run(model.key, store))


def test_the_command_prints_the_tree(store: Store) -> None:
    steps = chain(store, text(store), 3)
    result = inside("log", steps[1].key[:8], cwd=store.root.parent)
    assert result.code == 0
    assert result.paths[:2] == ["*", steps[2].key[:8]]
