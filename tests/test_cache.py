"""The cache commands: list, verify, clean up, explain, share."""

import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from stages import log, preview, show
from tests.cache.test_archive import edited, members, write
from tests.commands import Result
from tests.store.builders import chain, frames, text
from tests.workshop import PROMPT, SMALL, Place, inside
from wanpipe.cache.archive import export, import_
from wanpipe.cache.listing import Filter, list_entries
from wanpipe.cache.table import entry_table
from wanpipe.errors import WanpipeError
from wanpipe.runtime.units import format_age, format_si, format_table, parse_age, parse_size
from wanpipe.store import Entry, Store

pytest_plugins = ["tests.workshop"]
EDITS = 120


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished run with frames, a branch and a draft of another prompt."""
    store = Store(tmp_path / "cache")
    words = text(store, "a cat")
    steps = chain(store, words, 8)
    frames(store, steps[-1])
    chain(store, words, 8, after=steps[4], guide_scale=[6.0, 6.0])
    chain(store, text(store, "a dog"), 3, seed=2)
    store.name("best", steps[-1].path)
    return store


def wanpipe(store: Store, *words: object, code: int = 0) -> Result:
    result = inside(*words, cwd=store.root.parent)
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_ls_prints_stage_description_size_age_and_name(store: Store) -> None:
    result = inside("cache", "ls", cwd=store.root.parent)
    printed = " ".join(result.paths)
    assert "denoise “a cat”, seed 1, step 8/8, 832x480, 81 frames, guidance 5.0" in printed
    assert re.search(r"kB \d s best", printed)
    assert "encode-text “a dog”" in printed
    assert "decode “a cat”, 832x480, 81 frames" in printed


def test_ls_names_the_latest_video_of_a_run_and_of_its_frames(place: Place) -> None:
    def last_cells(**conditions: Any) -> dict[str, str]:
        table = entry_table(list_entries(Store(place.cache), Filter(**conditions)))
        return {line.split()[1]: re.split(r"  +", line)[-1] for line in table.splitlines()}

    place.film()
    cells = last_cells()
    assert [cells[stage] for stage in ("denoise", "decode")] == ["film.mp4"] * 2
    assert "film" not in cells["encode-text"]
    place.film("--output", "film.gif")
    assert last_cells()["denoise"] == "film.gif and 1 more"
    (place.root / "film.gif").unlink()
    assert last_cells()["decode"] == "film.gif (gone) and 1 more"
    assert "film" not in last_cells(stage="denoise")["denoise"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 6),
        (("--steps",), 17),
        (("--stage", "denoise"), 14),
        (("--prompt", "DOG"), 2),
        (("--prompt", "DOG", "--steps"), 4),
        (("--stage", "decode", "--prompt", "cat"), 1),
        (("--model", "tiny"), 6),
        (("--model", "other"), 0),
        (("--older-than", "1h"), 0),
        (("--newer-than", "1h", "--steps"), 17),
    ],
)
def test_ls_filters(words: tuple[str, ...], count: int, store: Store) -> None:
    result = inside("cache", "ls", "--json", *words, cwd=store.root.parent)
    assert result.code == 0
    out = " ".join(result.paths)
    assert out.count('"stage": ') == count


def test_ls_as_json_has_every_field(store: Store) -> None:
    (row,) = [one.to_json() for one in list_entries(store, Filter(stage="denoise")) if one.names]
    assert row["names"] == ["best"]
    assert (row["prompt"], row["seed"], row["step"], row["steps"]) == ("a cat", 1, 7, 8)
    assert json.loads(json.dumps(row)) == row


def test_a_prompt_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    chain(store, text(store, "\x1b[2Jevil\nline\u202e"), 1)
    key = next(store.root.glob("denoise/*")).name
    for words in (("cache", "ls"), ("log", key), ("show", key)):
        result = inside(*words, cwd=tmp_path)
        assert result.code == 0
        assert not set("\x1b\u202e") & set("".join(result.paths))


def test_du_adds_up_to_what_the_disk_holds(store: Store) -> None:
    sizes = json.loads(" ".join(inside("cache", "du", "--json", cwd=store.root.parent).paths))
    files = [path for path in store.root.glob("[a-z]*/**/*") if path.is_file()]
    assert sizes["in all"]["bytes"] == sum(path.stat().st_size for path in files)
    assert sizes["denoise"]["entries"] == 14
    assert sizes["denoise, interior steps among them"]["entries"] == 11


def spoil(entry: Path) -> None:
    """Flip a byte of an entry's first array."""
    file = next(path for path in sorted(entry.rglob("c.*")))
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


def test_verify_prints_nothing_for_an_intact_cache(store: Store) -> None:
    assert wanpipe(store, "cache", "verify", "--quiet").paths == []


def test_verify_lists_damaged_entries_and_repairs_them(store: Store) -> None:
    victims = sorted(store.root.glob("de*/*"))[3:5]
    for victim in victims:
        spoil(victim)
    found = wanpipe(store, "cache", "verify", code=1)
    assert found.paths == [f"cache/{path.parent.name}/{path.name}" for path in victims]
    assert "2 entries are damaged" in found.stderr.splitlines()[-1]
    repaired = wanpipe(store, "cache", "verify", "--repair")
    assert repaired.paths == found.paths
    assert len(list((store.root / ".damaged").iterdir())) == 2
    assert wanpipe(store, "cache", "verify").paths == []


def test_verify_rereads_the_files_of_a_model(place: Place, checkpoints: Path) -> None:
    model = place.made("convert", "--checkpoint-dir", checkpoints / "wan21-t2v")
    file = model / "vae.safetensors"
    stamp = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert inside("cache", "verify", cwd=place.root).code == 1


def test_a_dry_run_of_gc_prints_what_gc_removes(store: Store) -> None:
    words = ("cache", "gc", "--keep-steps", "last")
    dry = wanpipe(store, *words, "--dry-run")
    assert len(dry.paths) == 11
    assert all((store.root.parent / path).is_dir() for path in dry.paths)
    assert "would remove 11 entries" in dry.stderr
    wet = wanpipe(store, *words)
    assert wet.paths == dry.paths
    assert not any((store.root.parent / path).exists() for path in wet.paths)
    assert "removed 11 entries" in wet.stderr
    assert wanpipe(store, *words).paths == []


def test_gc_reports_why_it_cannot_free_more(store: Store) -> None:
    result = wanpipe(store, "cache", "gc", "--max-size", "0")
    assert "which is more than --max-size: entries that are named, pinned" in result.stderr
    rows = store.index.read().values()
    assert sorted(row.stage for row in rows) == ["denoise", "encode-text"]


def test_gc_without_a_limit_removes_only_leftovers(store: Store) -> None:
    spoil(next(store.root.glob("decode/*")))
    wanpipe(store, "cache", "verify", "--repair")
    gone = wanpipe(store, "cache", "gc")
    assert [Path(path).parent.name for path in gone.paths] == [".damaged"]
    assert len(store.index.read()) == 16


def draft_of(store: Store) -> Any:
    """The last step of seed 2."""
    run = next(run for run in store.runs.all() if run.seed == 2)
    path = store.runs.last(run)
    return store.index.read()[f"denoise/{path.name}"]


def test_pinned_entries_are_kept_until_they_are_unpinned(store: Store) -> None:
    draft = draft_of(store)
    wanpipe(store, "cache", "pin", draft.key[:8])
    everything = ("cache", "gc", "--older-than", "0m", "--dry-run")
    time.sleep(0.01)
    assert f"cache/{draft.id}" not in wanpipe(store, *everything).paths
    wanpipe(store, "cache", "unpin", draft.key[:8], "best")
    assert store.names.all() == {}
    assert f"cache/{draft.id}" in wanpipe(store, *everything).paths


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gc", "--max-size", "lots"), "a size must be like 50GB"),
        (("gc", "--older-than", "30"), "an age must be like 30d"),
        (("gc", "--keep-steps", "some"), "keep-steps must be last or every:N"),
        (("gc", "--max-size", "9" * 5000), "a size must be like 50GB"),
        (("gc", "--max-size", "-1"), "a size must be like 50GB"),
        (("gc", "--older-than", "9" * 5000 + "d"), "an age must be like 30d"),
        (("gc", "--keep-steps", "every:" + "9" * 5000), "keep-steps must be last or every:N"),
        (("gc", "--keep-steps", "every:0"), "keep-steps must be last or every:N"),
        (("gc", "--keep-steps", "every:-3"), "keep-steps must be last or every:N"),
        (("pin", "nothing"), "no entry nothing"),
        (("export", "best", "best.tar"), "an export must end in .zip"),
        (("import", "missing.zip"), "no file missing.zip"),
        (("explain", "nonsense"), "No such command"),
        (("explain", "show", "best"), "No such option"),
    ],
)
def test_invalid_arguments_are_one_line_errors(
    words: tuple[str, ...], says: str, store: Store
) -> None:
    result = inside("cache", *words, cwd=store.root.parent)
    assert result.code in (1, 2)
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_a_colleague_finishes_a_draft_on_another_machine(place: Place, tmp_path: Path) -> None:
    step = place.made(
        "denoise", "--from", place.text(), "--model", place.model, *SMALL, "--stop-at", 2
    )
    place.do("cache", "export", step.name, "draft.zip")
    mine = place.do("denoise", "--from", step).paths[-1]
    other = Place(tmp_path / "other", place.model)
    other.root.mkdir()
    taken = other.do("cache", "import", place.root / "draft.zip")
    assert sorted(Path(path).parent.name for path in taken.paths) == ["denoise", "encode-text"]
    finished = other.do("denoise", "--from", step.name, "--model", place.model)
    assert [event["step"] for event in finished.computed()] == [2, 3]
    assert finished.paths == [mine.replace(str(place.root), str(other.root))]
    ours, theirs = place.entry(mine), other.entry(finished.paths[-1])
    assert ours.record.digest == theirs.record.digest


def test_explain_is_the_dry_run_of_the_command(studio: Place) -> None:
    words = ("run", "--model", studio.model, "--prompt", PROMPT, *SMALL, "--seed", 3)
    explained = inside("cache", "explain", *words, cwd=studio.root)
    planned = inside(*words, "--dry-run", cwd=studio.root)
    assert (explained.paths, explained.stderr) == (planned.paths, planned.stderr)
    assert "denoise: 4 steps to compute. Closest run: " in explained.stderr
    assert ", which differs in seed (0 → 3)." in explained.stderr
    assert "denoise 1/" not in explained.stderr


VALUES: list[Any] = [None, True, -1, 0, 10**30, 1.5, "", "x", "../../x", "\x1b[31m", [], [[]], {}]


def spots(node: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a document."""
    children: Any = ()
    if isinstance(node, dict | list):
        children = node.items() if isinstance(node, dict) else enumerate(node)
    found = [path] if path else []
    for name, child in children:
        found += spots(child, (*path, name))
    return found


def change(document: dict, generator: random.Random) -> None:
    """Replace or delete a random value of the record."""
    path = generator.choice(spots(document["attributes"]["wanpipe"]))
    node = document["attributes"]["wanpipe"]
    for name in path[:-1]:
        node = node[name]
    if generator.random() < 0.2 and isinstance(node, dict):
        del node[path[-1]]
    else:
        node[path[-1]] = generator.choice(VALUES)


def test_edited_and_resealed_records_are_refused_or_can_be_shown(
    store: Store, tmp_path: Path
) -> None:
    generator = random.Random(4)
    draft = store.resolve(draft_of(store).key)
    export([draft], tmp_path / "draft.zip", store)
    good = members(tmp_path / "draft.zip")
    taken = 0
    for number in range(EDITS):
        contents = edited(lambda group: change(group, generator))(good)
        file = write(tmp_path / "hostile.zip", contents)
        there = Store(tmp_path / f"there-{number}")
        try:
            import_(file, there)
        except WanpipeError as error:
            assert "\n" not in str(error)
            assert not there.index.read()
            continue
        taken += 1
        look_at(draft, there, tmp_path)
    assert 0 < taken < EDITS / 2


def look_at(draft: Entry, store: Store, folder: Path) -> None:
    """Show an entry in every way; only one-line errors may come."""
    sheet = preview.Params(output=folder / "x.png")
    actions = (
        lambda: list_entries(store, Filter(prompt="x")),
        lambda: show.run(draft.key, store),
        lambda: list(log.run(draft.key, store)),
        lambda: preview.run([store.resolve(draft.key)], sheet, store),
    )
    for action in actions:
        try:
            action()
        except WanpipeError as error:
            assert "\n" not in str(error)


def test_sizes_and_ages_are_parsed_and_formatted() -> None:
    assert [parse_size(word) for word in ("50GB", "1.5 t", "500M", "7", "1GiB", "3kB")] == [
        *(50 * 10**9, 1500 * 10**9, 500 * 10**6, 7, 1 << 30, 3000)
    ]
    ages = [parse_age(word) for word in ("90m", "12h", "30d", "2w")]
    assert ages == [5400, 43200, 2592000, 1209600]
    assert [format_age(seconds) for seconds in (5, 119, 600, 7300, 10**6)] == [
        *("5 s", "119 s", "10 min", "2 h", "11 d")
    ]
    assert format_si(2_840_000_000, "B") == "2.84 GB"
    assert format_table([("a", "bb"), ("ccc", "d")], frozenset({1})) == "a    bb\nccc   d"


def test_an_empty_cache_is_not_an_error(tmp_path: Path) -> None:
    for command in ("ls", "du", "verify", "gc"):
        assert inside("cache", command, cwd=tmp_path).code == 0
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])
