"""Spoilt documents of a cache through every command that reads them: one line, or what is right.

Every case changes one document of a small cache and runs one command in this process, which may
start no process and change no file outside the cache and its output.
"""

import json
import os
import random
import resource
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cache.test_archive import members, resealed
from tests.cache.test_archive import write as write_zip
from tests.documents import guard, mutate, to_text
from tests.store.builders import chain, frames, recipe, text, tree
from tests.workshop import inside
from wanpipe.cache.archive import export
from wanpipe.store import Store
from wanpipe.store.entry import seal_of
from wanpipe.store.index_file import FILE, checksum
from wanpipe.store.keys import key_of
from wanpipe.store.runs import ModelReference

CASES = 120  # of each kind of document; an export has half of them, which take longer
SECONDS, BYTES = 10, 1 << 30  # of one case, and of all
Change = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Home:
    """A cache to be copied for each case, and the keys of its entries."""

    cache: Path
    keys: list[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("fuzz")
    store = Store(root / "cache")
    words = text(store)
    steps = chain(store, words, 3)
    made = frames(store, steps[-1])
    store.name("cat", steps[1].path)
    store.pins.set(steps[0].key, f"denoise/{steps[0].key}")
    store.save_model(ModelReference(key="9" * 32, directory="/models/tiny"))
    store.index.read()
    export([steps[-1]], root / "run.zip", store)
    return Home(root / "cache", [words.key, *(step.key for step in steps), made.key])


def write(file: Path, data: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(data)


def spoil_record(root: Path, generator: random.Random) -> None:
    """Change a record; write key and seal anew in most cases, as an attacker would."""
    file = generator.choice(sorted(root.glob("*/*/zarr.json")))
    group = json.loads(file.read_bytes())
    record = group["attributes"]["wanpipe"]
    part = generator.choice(["material", "made", "inputs", None, None])
    if part is None:
        record = mutate(record, generator)
    else:
        record[part] = mutate(record[part], generator)
    group["attributes"]["wanpipe"] = record
    folder = file.parent
    with suppress(ValueError, LookupError, TypeError, RecursionError, OSError, AttributeError):
        if generator.random() < 0.5:
            record["key"] = key_of(record["material"])
            folder = file.parent.rename(file.parent.with_name(record["key"]))
        if generator.random() < 0.8:
            record["seal"] = seal_of(folder, group)
    write(folder / "zarr.json", to_text(group))
    if generator.random() < 0.5:
        (root / FILE).unlink()  # so that listings read the record


def spoil_group(root: Path, generator: random.Random) -> None:
    """Change a document of a group or an array whole."""
    file = generator.choice(sorted(root.glob("*/*/**/zarr.json")))
    write(file, to_text(mutate(json.loads(file.read_bytes()), generator)))


def spoil_export(root: Path, generator: random.Random) -> None:
    """Change a document of an export, with a seal that fits in most cases."""
    contents = members(root.parent / "run.zip")
    name = generator.choice([name for name in sorted(contents) if name.endswith(".json")])
    document = json.loads(contents[name])
    record = document.get("attributes", {}).get("wanpipe")
    if record is not None and generator.random() < 0.8:
        part = generator.choice(["material", "made", "inputs", "digest"])
        record[part] = mutate(record[part], generator)
    else:
        document = mutate(document, generator)
    contents[name] = to_text(document)
    if name[0] != "." and generator.random() < 0.8:
        with suppress(ValueError, LookupError, TypeError, RecursionError, AttributeError):
            contents = resealed(contents, "/".join([*name.split("/")[:2], "zarr.json"]))
    write_zip(root.parent / "work" / "hostile.zip", contents)


def spoil_run(root: Path, generator: random.Random) -> None:
    """Change the record of a run or of a model, with a key that fits in most cases."""
    file = generator.choice(sorted([*root.glob(".runs/*.json"), *root.glob(".models/*.json")]))
    document = mutate(json.loads(file.read_bytes()), generator)
    if isinstance(document, dict) and "settings" in document and generator.random() < 0.8:
        try:
            identity = {name: document[name] for name in ("start", "inputs", "settings", "dtype")}
            model = {name: document["model"][name] for name in ("key", "experts")}
            document["key"] = key_of({"schema": 1, "run": identity, "model": model})
            file = file.rename(file.with_name(f"{document['key']}.json"))
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
    write(file, to_text(document))


def spoil_index(root: Path, generator: random.Random) -> None:
    """Change rows of the index file, with checksums that fit."""
    with closing(sqlite3.connect(root / FILE)) as database, database:
        database.execute("PRAGMA synchronous=OFF")
        rows = database.execute("SELECT kind, name, value FROM notes").fetchall()
        for kind, name, value in generator.sample(rows, min(2, len(rows))):
            try:
                data = to_text(mutate(json.loads(value), generator))
            except ValueError:  # a hash
                data = generator.randbytes(generator.choice([0, 10, 1000]))
            database.execute(
                "UPDATE notes SET value = ?, checksum = ? WHERE kind = ? AND name = ?",
                (data, checksum(kind, name, data), kind, name),
            )


SCHEMAS = [
    "DROP TABLE notes; CREATE VIEW notes AS WITH RECURSIVE"
    " n(x) AS (SELECT 1 UNION ALL SELECT x FROM n)"
    " SELECT 'entry' kind, x name, x value, x checksum FROM n",
    "CREATE TRIGGER more AFTER INSERT ON notes BEGIN DELETE FROM notes; END",
    "ALTER TABLE notes ADD COLUMN more TEXT",
    "ALTER TABLE notes RENAME COLUMN value TO other",
    "DROP TABLE notes",
    "PRAGMA user_version=7",
    "CREATE TABLE letters (text TEXT)",
]


def spoil_schema(root: Path, generator: random.Random) -> None:
    """Change the tables of the index file, or its bytes, or what it is."""
    file, kind = root / FILE, generator.randrange(4)
    if kind == 0:
        data = bytearray(file.read_bytes())
        for _ in range(generator.choice([1, 10, 1000])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        file.write_bytes(data[: generator.choice([len(data), len(data), 0, 50, 5000])])
    elif kind == 1:
        odd_file(file, root.parent / "outside" / "mine.db", generator)
    else:
        with closing(sqlite3.connect(file)) as database:
            database.executescript(f"PRAGMA synchronous=OFF; {generator.choice(SCHEMAS)}")


def odd_file(file: Path, outside: Path, generator: random.Random) -> None:
    """Put something else in the place of a file: a pipe, a folder, a link, noise, nothing."""
    file.unlink()
    kind = generator.randrange(6)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(generator.choice([outside, "/dev/zero", "/nowhere", file.name]))
    elif kind == 3:
        file.write_bytes(generator.randbytes(generator.choice([1, 100, 100_000])))
    elif kind == 4:
        file.write_bytes(b"[" * 100_000)


def spoil_file(root: Path, generator: random.Random) -> None:
    """Put something else in the place of any file of the cache."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != FILE]
    odd_file(generator.choice(sorted(files)), root.parent / "outside" / "letter.txt", generator)


DOCUMENTS: dict[str, Change] = {
    "record": spoil_record,
    "group": spoil_group,
    "run": spoil_run,
    "index": spoil_index,
    "schema": spoil_schema,
    "file": spoil_file,
    "export": spoil_export,
}


def commands(home: Home, generator: random.Random) -> list[Any]:
    """Return one command that reads the cache."""
    key = generator.choice([*home.keys, "cat"])
    run = next((home.cache / ".runs").iterdir()).stem
    return list(
        generator.choice(
            [
                *(
                    ("show", key),
                    ("show", key, "--json"),
                    ("show", run),
                    ("log", key),
                    ("log", run),
                ),
                *(("cache", "ls"), ("cache", "ls", "--json", "--steps"), ("cache", "du")),
                ("cache", "ls", "--prompt", "cat", "--model", "tiny", "--older-than", "1d"),
                ("cache", "verify"),
                ("cache", "verify", "--repair"),
                ("cache", "gc", "--max-size", "1", "--dry-run"),
                ("cache", "gc", "--older-than", "1m", "--keep-steps", "every:2"),
                ("cache", "gc", "--max-size", "0"),
                *(("cache", "pin", key), ("cache", "unpin", key)),
                ("cache", "export", key, "out.zip"),
                ("cache", "import", home.cache.parent / "run.zip"),
                ("preview", key, "--output", "sheet.png"),
                ("denoise", "--from", key, "--dry-run"),
                ("decode", "--from", key, "--dry-run"),
            ]
        )
    )


def peak() -> int:
    """Largest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Place:
    """A copy of the cache beside a folder of the user's, which is put back after every case."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.root, self.outside, self.work = (folder / n for n in ("cache", "outside", "work"))
        shutil.copytree(home.cache, self.root)
        self.outside.mkdir()
        (self.outside / "letter.txt").write_text("dear")
        with closing(sqlite3.connect(self.outside / "mine.db")) as database:
            database.execute("CREATE TABLE letters (text TEXT)")
        self.work.mkdir()
        shutil.copyfile(home.cache.parent / "run.zip", folder / "run.zip")
        self.files = {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def put_back(self) -> None:
        """Write every file that was changed, and remove every other one."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_symlink() or not path.is_dir():
                known = self.files.get(path)
                if not known or path.is_symlink() or path.stat().st_mtime_ns != known[1]:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
        for path, (data, time_ns) in self.files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                os.utime(path, ns=(time_ns, time_ns))


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_spoilt_document_is_one_line_or_harmless(
    kind: str,
    home: Home,
    fuzz_factor: int,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # half of the time
    cases = CASES * fuzz_factor // (2 if kind == "export" else 1)
    place, before, codes = Place(home, tmp_path), peak(), Counter[int]()
    root, outside = place.root, tree(place.outside)
    for number in range(cases):
        generator = random.Random(f"{kind} {number}")
        place.put_back()
        DOCUMENTS[kind](root, generator)
        words = commands(home, generator)
        if kind == "export":
            words = ["cache", "import", "hostile.zip"]
        started = time.process_time()
        with guard.watching(root, place.work) as wrong:
            result = inside(*words, "--cache", root, cwd=place.work)
        case = (kind, number, words, result.stderr[:2000])
        assert not wrong, (wrong, case)
        assert result.code in (0, 1, 2), case
        assert "Traceback" not in result.stderr, case
        lines = result.stderr.splitlines()
        assert result.code == 0 or lines[-1].startswith("wanpipe: error: "), case
        assert all(line.isprintable() for line in lines), case
        assert tree(place.outside) == outside, case
        assert time.process_time() - started < SECONDS, case
        codes[result.code] += 1
    assert peak() - before < BYTES
    assert kind == "export" or codes[0] > cases / 10, codes
    assert kind in ("index", "schema") or codes[1] > cases / 20, codes
    record_property("cases", cases)
    record_property("refused", cases - codes[0])


def test_a_spoilt_index_costs_one_rebuild(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    expected, place = Store(home.cache).index.read(), Place(home, tmp_path)
    root = place.root
    for number in range(60):
        place.put_back()
        spoil_schema(root, random.Random(f"rebuild {number}"))
        store = Store(root)
        assert store.index.read() == expected, number
        store.save_model(ModelReference(key="8" * 32, directory="/x"))
        if not (root / FILE).is_dir():
            assert store.index.load() == expected, number


def test_the_guard_notices_what_a_reader_must_not_do(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    with guard.watching(tmp_path / "inside") as wrong:
        (tmp_path / "inside" / "fine").write_text("x")
        (tmp_path / "inside" / "fine").unlink()
        assert wrong == []
        (tmp_path / "inside" / "link").write_text("x")
        (tmp_path / "outside").rename(tmp_path / "inside" / "moved")
        subprocess.run(["true"], check=True)
        (tmp_path / "new").mkdir()
    assert [line.split()[0].split("(")[0] for line in wrong][:2] == ["open", "os.rename"]
    assert any("subprocess.Popen" in line for line in wrong)
    assert any("os.mkdir" in line for line in wrong)
    assert recipe().key
