"""Exports: whole with what they were made from, and nothing but data when they come in."""

import io
import json
import random
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.builders import (
    arrays,
    chain,
    fill,
    fill_model,
    forbidden,
    frames,
    recipe,
    step_recipe,
    text,
    tree,
)
from wanpipe.cache.archive import export, import_
from wanpipe.errors import StoreError, UsageError, WanpipeError
from wanpipe.store import Entry, Store
from wanpipe.store.entry import read_entry, seal_of

MUTATIONS = 500
Members = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def draft(store: Store) -> Entry:
    """A run that stopped at its third step."""
    return chain(store, text(store), 3)[-1]


@pytest.fixture
def archive(store: Store, draft: Entry, tmp_path: Path) -> Path:
    export([draft], tmp_path / "draft.zip", store)
    return tmp_path / "draft.zip"


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, contents: Members) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file


def test_a_colleague_finishes_a_draft(store: Store, draft: Entry, archive: Path) -> None:
    words = store.root / "encode-text" / draft.inputs["text"]
    there = Store(store.root.parent / "there")
    paths = import_(archive, there)
    assert {(path.parent.name, path.name) for path in paths} == {
        ("denoise", draft.key),
        ("encode-text", words.name),
    }
    assert arrays(there.resolve(draft.key)) == arrays(draft)
    assert there.get_or_create(step_recipe(read_entry(words), 3, draft.key), fill(9))
    assert not list((there.root / ".tmp").iterdir())


def test_frames_are_exported_with_their_step_and_its_text(store: Store, draft: Entry) -> None:
    together = export([frames(store, draft)], store.root.parent / "film.zip", store)
    assert [entry.stage for entry in together] == ["decode", "denoise", "encode-text"]


def test_the_same_entries_make_the_same_file(store: Store, draft: Entry, archive: Path) -> None:
    export([draft], archive.with_name("again.zip"), store)
    assert archive.read_bytes() == archive.with_name("again.zip").read_bytes()


def test_an_import_keeps_existing_entries(store: Store, archive: Path) -> None:
    before = tree(store.root)
    assert len(import_(archive, store)) == 2
    assert tree(store.root) == before


def test_a_model_is_not_exported(store: Store, tmp_path: Path) -> None:
    model = store.get_or_create(recipe(stage="convert"), fill_model)
    with pytest.raises(UsageError, match="a converted model, which does not travel"):
        export([model], tmp_path / "model.zip", store)


def test_an_entry_without_its_text_is_not_exported(store: Store, draft: Entry) -> None:
    shutil.rmtree(store.root / "encode-text")
    with pytest.raises(StoreError, match="which is gone"):
        export([draft], store.root.parent / "draft.zip", store)
    assert not list(store.root.parent.glob("*.zip"))


def test_an_export_that_fails_leaves_no_file(store: Store, draft: Entry, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        export([draft], tmp_path / "missing" / "draft.zip", store)
    with pytest.raises(UsageError, match=r"must end in \.zip"):
        export([draft], tmp_path / "draft.tar", store)
    assert not list(tmp_path.glob(".*zip"))


def key(contents: Members, stage: str) -> str:
    return next(name for name in contents if name.startswith(stage)).split("/")[1]


def edited(change: Callable[[dict], None]) -> Callable[[Members], Members]:
    """Change the document of the step and write its seal anew, as an attacker would."""

    def edit(contents: Members) -> Members:
        name = f"denoise/{key(contents, 'denoise')}/zarr.json"
        group = json.loads(contents[name])
        change(group)
        return resealed({**contents, name: json.dumps(group).encode()}, name)

    return edit


def resealed(contents: Members, name: str) -> Members:
    """Write the seal of an entry so that it fits whatever its documents are."""
    group = json.loads(contents[name])
    inside = name.removesuffix("zarr.json")
    with tempfile.TemporaryDirectory() as folder:
        for other, data in contents.items():
            if other.startswith(inside):
                target = Path(folder, other.removeprefix(inside))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        group["attributes"]["wanpipe"]["seal"] = seal_of(Path(folder), group)
    return {**contents, name: json.dumps(group).encode()}


def record(change: Callable[[dict], object]) -> Callable[[Members], Members]:
    return edited(lambda group: change(group["attributes"]["wanpipe"]))


def array(change: Callable[[dict], None]) -> Callable[[Members], Members]:
    """Change the metadata of the latent, with a seal that fits."""

    def edit(contents: Members) -> Members:
        step = key(contents, "denoise")
        name = f"denoise/{step}/latent/zarr.json"
        document = json.loads(contents[name])
        change(document)
        contents = {**contents, name: json.dumps(document).encode()}
        return resealed(contents, f"denoise/{step}/zarr.json")

    return edit


def codec(name: str) -> Callable[[Members], Members]:
    return array(lambda document: document["codecs"].insert(1, {"name": name}))


def run(change: Callable[[dict], None]) -> Callable[[Members], Members]:
    """Change the record of the run."""

    def edit(contents: Members) -> Members:
        name = next(name for name in contents if name.startswith(".runs/"))
        document = json.loads(contents[name])
        change(document)
        return {**contents, name: json.dumps(document).encode()}

    return edit


HOSTILE: dict[str, Callable[[Members], Members]] = {
    "escapes upwards": lambda contents: {**contents, "../evil": b"x"},
    "escapes through a stage": lambda contents: {**contents, "denoise/../../evil": b"x"},
    "absolute": lambda contents: {**contents, "/tmp/evil": b"x"},
    "backslashes": lambda contents: {**contents, "denoise\\evil": b"x"},
    "a name of ours": lambda contents: {**contents, ".names/cat": b"denoise/x"},
    "a model": lambda contents: {
        name.replace("denoise/", "convert/"): data for name, data in contents.items()
    },
    "a pickle": lambda contents: {**contents, f"denoise/{key(contents, 'denoise')}/x.pkl": b"x"},
    "another file": lambda contents: {
        **contents,
        f"denoise/{key(contents, 'denoise')}/latent/c.1.0.0.0": b"x",
    },
    "a missing chunk": lambda contents: {
        name: data for name, data in contents.items() if "latent/c." not in name
    },
    "missing metadata": lambda contents: {
        name: data for name, data in contents.items() if not name.endswith("latent/zarr.json")
    },
    "another key": lambda contents: {
        name.replace(key(contents, "denoise"), "0" * 32): data for name, data in contents.items()
    },
    "no entries": lambda contents: {},
    "another codec": codec("numcodecs.zlib"),
    "a codec of pickles": codec("numcodecs.pickle"),
    "a shape that fills memory": array(
        lambda document: document.update(
            shape=[4, 2, 3, 1 << 29],
            chunk_grid={"name": "regular", "configuration": {"chunk_shape": [4, 2, 3, 1 << 29]}},
        )
    ),
    "objects": array(lambda document: document.update(data_type="string")),
    "attributes of an array": array(lambda document: document.update(attributes={"x": 1})),
    "a number for a truth": array(lambda document: document.update(zarr_format=3.0)),
    "settings of another type": record(lambda record: record["made"].update(settings=[1])),
    "a run of another key": run(lambda run: run.update(inputs={"text": "f" * 32})),
    "a run of another type": run(lambda run: run.update(seed="$(id)")),
    "a run with more fields": run(lambda run: run.update(more=1)),
    "a seed in words": record(lambda record: record["made"].update(seed="$(id)")),
    "a step outside the run": record(lambda record: record.update(step=99)),
    "another parent": record(lambda record: record.update(parent="f" * 32)),
    "inputs that are paths": record(lambda record: record.update(inputs={"text": "../../x"})),
    "plain files": record(lambda record: record.update(files={"x": "y"})),
    "no digests": record(lambda record: record.update(digest={})),
    "a digest more": record(lambda record: record["digest"].update({"../../x": "0"})),
    "another schema": record(lambda record: record.update(schema=2)),
    "time in numbers": record(lambda record: record["made"].update(time=5)),
    "consolidated metadata": edited(
        lambda group: group.update(consolidated_metadata={"metadata": {}})
    ),
}


def check_refused(file: Path, root: Path) -> None:
    """An import of `file` is refused in one line and leaves a cache as it was."""
    there = Store(root)
    there.get_or_create(recipe(), fill())
    before = tree(root)
    with pytest.raises(WanpipeError) as caught:
        import_(file, there)
    assert "\n" not in str(caught.value)
    assert tree(root) == before
    assert {path.name for path in root.parent.iterdir()} <= ALLOWED


ALLOWED = {"cache", "draft.zip", "hostile.zip", "there"}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_changes_nothing(what: str, archive: Path, tmp_path: Path) -> None:
    hostile = write(tmp_path / "hostile.zip", HOSTILE[what](members(archive)))
    check_refused(hostile, tmp_path / "there")


def test_every_attack_has_its_reason(archive: Path, tmp_path: Path) -> None:
    """An edit that changes nothing, sealed anew as the attacks are, is taken in."""
    for harmless in (record(lambda record: None), array(lambda document: None)):
        file = write(tmp_path / "hostile.zip", harmless(members(archive)))
        there = Store(tmp_path / "there")
        assert len(import_(file, there)) == 2
        shutil.rmtree(there.root)


def test_a_name_given_twice_is_refused(archive: Path, tmp_path: Path) -> None:
    contents = members(archive)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "hostile.zip", "w") as twice:
        warnings.simplefilter("ignore")
        for _ in range(2):
            for name, data in contents.items():
                twice.writestr(name, data)
    check_refused(tmp_path / "hostile.zip", tmp_path / "there")


def test_a_compressed_file_is_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members(archive).items():
            packed.writestr(name, data)
    check_refused(tmp_path / "hostile.zip", tmp_path / "there")


def test_a_decompression_bomb_is_refused(archive: Path, tmp_path: Path) -> None:
    import google_crc32c
    from numcodecs import Zstd

    packed = bytes(Zstd(1).encode(bytes(1 << 25)))
    contents = members(archive)
    name = next(name for name in contents if name.endswith("latent/c.0.0.0.0"))
    contents[name] = packed + google_crc32c.value(packed).to_bytes(4, "little")
    check_refused(write(tmp_path / "hostile.zip", contents), tmp_path / "there")


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"x" * 1000])
def test_a_file_that_is_not_a_zip_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "hostile.zip").write_bytes(data)
    check_refused(tmp_path / "hostile.zip", tmp_path / "there")


def test_a_missing_file_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        import_(tmp_path / "nothing.zip", store)


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Flip, cut, drop, double or move a few bytes, or write where names and sizes are."""
    data = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        kind = generator.randrange(6)
        start = generator.randrange(len(data))
        end = min(len(data), start + generator.choice((1, 4, 40, 400)))
        if kind == 0:
            data[start] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            data[start:end] = generator.randbytes(end - start)
        elif kind == 4:
            directory = data.rfind(b"PK\x01\x02")
            data[generator.randrange(directory, len(data))] = generator.randrange(256)
        else:
            text = generator.choice((b"zarr.json", b'"', b"wanpipe", b"32", b"denoise", b"latent"))
            found = data.find(text, start)
            if found >= 0:
                data[found : found + len(text)] = generator.randbytes(len(text))
        if len(data) < 30:
            break
    return bytes(data)


def test_five_hundred_mutations_are_refused_or_harmless(
    draft: Entry, archive: Path, tmp_path: Path
) -> None:
    generator = random.Random(20)
    good, original = members(archive), archive.read_bytes()
    there = Store(tmp_path / "there")
    there.get_or_create(recipe(), fill())
    before = tree(there.root)
    taken = 0
    for number in range(MUTATIONS):
        file = tmp_path / "hostile.zip"
        file.write_bytes(mutated(original, generator))
        try:
            paths = import_(file, there)
        except WanpipeError as error:
            assert "\n" not in str(error), number
        else:
            taken += 1
            for path in paths:
                for name, data in tree(path).items():
                    assert data == good[f"{path.parent.name}/{path.name}/{name}"], number
                shutil.rmtree(path)
            shutil.rmtree(there.root / ".runs", ignore_errors=True)
        assert tree(there.root) == before, number
    assert not list((there.root / ".tmp").iterdir())
    assert taken < MUTATIONS / 4


def test_an_import_on_a_full_disk_leaves_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Store(tmp_path / "there")
    there.get_or_create(recipe(), fill())
    before = tree(there.root)
    real = io.open

    def full(path, mode="r", *rest, **options):
        if "x" in mode and "latent" in str(path):
            return real("/dev/full", "wb")
        return real(path, mode, *rest, **options)

    monkeypatch.setattr(io, "open", full)
    with pytest.raises(StoreError, match="no space left"):
        import_(archive, there)
    monkeypatch.undo()
    assert tree(there.root) == before
    assert there.get_or_create(recipe(), forbidden)
