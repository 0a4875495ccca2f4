"""The remote tier against an S3 server: what is shared, what is refused, and how it fails."""

import http.server
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from obstore.store import from_url
from zarr.storage import ObjectStore

from stages import convert
from tests.buckets import KEYS, s3_environment
from tests.store.builders import (
    RecordingReport,
    arrays,
    chain,
    fill,
    forbidden,
    recipe,
    text,
    tree,
)
from tests.workshop import PROMPT, SMALL, Place, inside
from wanpipe.cache.gc import find_leftovers
from wanpipe.cache.remote.bucket import Bucket
from wanpipe.cache.remote.push import BusyError, push
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import find_unsound, list_remote
from wanpipe.demo import CHECKPOINTS
from wanpipe.errors import UsageError
from wanpipe.store import Entry, Store
from wanpipe.store.schema import STAGES


def names(url: str) -> set[str]:
    return set(list_remote(Bucket(url), list(STAGES)))


def stages(url: str) -> list[str]:
    return sorted(name.partition("/")[0] for name in names(url))


def pushed(store: Store, url: str, make: "partial[Entry]", policy: str | None = None) -> Entry:
    """What `make` publishes, while a store has a remote."""
    with opened(url, policy, store):
        return make()


def test_another_machine_gets_all_results_without_computing(
    place: Place, other: Place, url: str
) -> None:
    place.film("--remote", url)
    assert stages(url) == ["decode", "denoise", "encode-text"]
    film = other.film("--remote", url)
    assert film.computed() == []
    pulled = {event["stage"] for event in film.events if event["event"] == "pulled"}
    assert pulled == {"decode", "denoise", "encode-text"}
    assert (place.root / "film.mp4").read_bytes() == (other.root / "film.mp4").read_bytes()


@pytest.mark.parametrize(
    ("policy", "steps", "all_stages"),
    [("steps", 4, False), ("all", 4, False), ("none", 0, True)],
)
def test_the_policy_says_what_is_pushed(
    policy: str, steps: int, all_stages: bool, place: Place, url: str
) -> None:
    place.film("--remote", url, "--push", policy)
    assert stages(url).count("denoise") == steps
    assert (names(url) == set()) == all_stages


def test_a_run_is_continued_from_a_step_of_another_machine(
    place: Place, other: Place, url: str
) -> None:
    last = place.made("denoise", "--model", place.model, "--from", place.text(), *SMALL)
    whole = (last.name, arrays(place.entry(last)))
    shutil.rmtree(place.cache)
    text = place.made("encode-text", "--model", place.model, "--prompt", PROMPT, "--remote", url)
    words = ("--model", place.model, "--from", text, *SMALL, "--remote", url)
    draft = place.made("denoise", *words, "--stop-at", 2)
    more = ("--model", other.model, "--remote", url)
    result = other.do("denoise", "--from", draft.name, *more)
    assert len(result.computed("denoise")) == 2
    entry = other.entry(result.paths[-1])
    assert (entry.key, arrays(entry)) == whole


def test_a_worker_needs_only_the_url_to_get_a_model(tmp_path: Path, url: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    share = ("--remote", url, "--push", "all")
    made = inside("convert", "--checkpoint-dir", CHECKPOINTS / "t2v", *share, cwd=one)
    assert made.code == 0, made.stderr
    key = Path(made.paths[-1]).name
    asked = ("--prompt", "a red circle", "--remote", url)
    result = inside("encode-text", "--model", key, *asked, "--events", "json", cwd=two)
    assert result.code == 0, result.stderr
    assert tree(one / "cache/convert" / key) == tree(two / "cache/convert" / key)


def test_a_cut_pull_of_a_model_goes_on_where_it_ended(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "one")
    with opened(url, "all", store):
        model = convert.run(convert.Params(checkpoint_dir=CHECKPOINTS / "t2v"), store)
    monkeypatch.setattr("wanpipe.cache.remote.bucket.PART_BYTES", 1 << 16)
    there = Bucket.download
    read: list[int] = []
    cuts = [2]  # the second file

    def cut(self: Bucket, path: str, file: Path, size: int) -> None:
        read.append(size - (file.stat().st_size if file.exists() else 0))
        if len(read) in cuts:
            there(self, path, file, size // 2)
            raise RuntimeError("cut")
        there(self, path, file, size)

    monkeypatch.setattr(Bucket, "download", cut)
    two = Store(tmp_path / "two")
    with pytest.raises(RuntimeError, match="cut"), opened(url, None, two):
        two.find("convert", model.name)
    assert not two.path("convert", model.name).exists()
    assert [path.name for path in find_leftovers(two, 0)] == [f"pull-convert-{model.name}"]
    begun = read[:]
    read.clear()
    cuts.clear()
    with opened(url, None, two):
        assert two.find("convert", model.name) is not None
    assert read[0] == 0  # the first file was whole
    assert read[1] == begun[1] - begun[1] // 2
    assert tree(two.path("convert", model.name)) == tree(model)


def test_zarr_opens_an_entry_of_the_bucket(tmp_path: Path, url: str) -> None:
    store = Store(tmp_path / "cache")
    entry = pushed(store, url, partial(text, store))
    bucket = from_url(f"{url}/{entry.stage}/{entry.key}", client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    assert np.array_equal(group["prompt"][:], entry.read("prompt"))
    assert group.attrs["wanpipe"]["key"] == entry.key


def test_a_directory_is_a_remote_too(place: Place, other: Place, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a/share"
    place.film("--remote", url)
    assert other.film("--remote", url).computed() == []


def test_https_is_read_only_and_needs_no_listing(
    place: Place, other: Place, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    place.film("--remote", f"file://{share}")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(share))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}"
        before = sorted(share.rglob("*"))
        film = other.film("--remote", url)
        assert film.computed() == []
        other.film("--remote", url, "--seed", 2)
        assert sorted(share.rglob("*")) == before
        step = next((share / "denoise").iterdir()).name
        third = Place(tmp_path / "third", place.model)
        third.root.mkdir()
        pulled = third.do("cache", "pull", step, "--remote", url)
        assert [Path(path).name for path in pulled.paths] == [step]
        result = inside("cache", "push", "--remote", url, cwd=other.root)
        site.shutdown()
    assert result.code == 1
    assert "can only be read" in result.stderr


def test_the_first_of_two_that_push_the_same_key_stays(tmp_path: Path, url: str) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first = pushed(one, url, partial(one.get_or_create, recipe(), fill(1)))
    second = two.get_or_create(recipe(), fill(2))
    assert not push(Bucket(url), second)
    three = Store(tmp_path / "three")
    with opened(url, None, three):
        assert arrays(three.get_or_create(recipe(), forbidden)) == arrays(first)


def test_objects_of_two_pushes_are_never_mixed(tmp_path: Path, url: str) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first, second = (store.get_or_create(recipe(), fill(n)) for n, store in enumerate((one, two)))
    bucket, name = Bucket(url), f"{first.stage}/{first.key}"
    begun = first.path / "latent" / "c.0.0.0.0"
    bucket.put(f"{name}/latent/c.0.0.0.0", begun)  # and then it was killed
    with pytest.raises(BusyError):
        push(bucket, second)
    assert bucket.size(f"{name}/zarr.json") is None
    assert push(bucket, first)
    assert list(find_unsound(bucket, Store(tmp_path / "three"))) == []


def test_what_a_killed_push_left_is_replaced_after_a_while(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first, second = (store.get_or_create(recipe(), fill(n)) for n, store in enumerate((one, two)))
    bucket = Bucket(url)
    bucket.put(f"denoise/{first.key}/x0/c.0.0.0.0", first.path / "x0" / "c.0.0.0.0")
    monkeypatch.setattr("wanpipe.cache.remote.push.STALE_SECONDS", -1.0)
    assert push(bucket, second)
    assert list(find_unsound(bucket, Store(tmp_path / "three"))) == []


def test_a_large_array_is_written_only_where_none_is(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanpipe.cache.remote.bucket.PART_BYTES", 100)  # less than any array has
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first, second = (store.get_or_create(recipe(), fill(n)) for n, store in enumerate((one, two)))
    bucket, name = Bucket(url), f"denoise/{first.key}/latent/c.0.0.0.0"
    assert bucket.put(name, first.path / "latent" / "c.0.0.0.0")
    with pytest.raises(BusyError):
        push(bucket, second)
    assert bucket.read(name, 1 << 20) == (first.path / "latent" / "c.0.0.0.0").read_bytes()


def test_a_step_is_not_taken_with_the_run_of_another(tmp_path: Path, url: str) -> None:
    store = Store(tmp_path / "one")
    with opened(url, "steps", store):
        words = text(store)
        mine, other = (chain(store, words, 1, seed=seed)[-1] for seed in (1, 2))
    bucket = Bucket(url)
    run = bucket.read(f".steps/{other.key}", 32)
    assert run is not None
    bucket.put(f".steps/{mine.key}", run, replace=True)
    report = RecordingReport()
    two = Store(tmp_path / "two", report)
    with opened(url, "none", two):
        assert two.find("denoise", mine.key) is None
        assert two.find("denoise", other.key) is not None
    assert any("has no step" in remark for remark in report.remarks)


def test_show_counts_the_steps_that_the_cache_has(place: Place, other: Place, url: str) -> None:
    place.film("--remote", url, "--push", "steps")
    run = place.run(next((place.cache / "denoise").iterdir())).key
    last = Store(place.cache).runs.get(run).last
    other.do("cache", "pull", last, "--remote", url)
    shown = inside("show", run, "--remote", url, cwd=other.root)
    assert shown.code == 0, shown.stderr
    assert "1 of 4 in the cache" in " ".join(shown.paths)


def damage(bucket: Bucket, name: str, how: str) -> None:
    """Change the objects of an entry as a fault or an attacker would."""
    if how == "chunk":
        bucket.put(f"{name}/latent/c.0.0.0.0", b"\0" * 100, replace=True)
    elif how == "large":
        bucket.put(f"{name}/latent/c.0.0.0.0", b"\0" * (2 << 20), replace=True)
    elif how == "missing":
        bucket.delete([f"{name}/x0/c.0.0.0.0"])
    elif how == "document":
        bucket.put(f"{name}/zarr.json", b"{}", replace=True)
    else:
        data = json.loads(bucket.read(f"{name}/zarr.json", 1 << 20) or b"")
        record = data["attributes"]["wanpipe"]
        record["digest"] = {how: record["digest"]["latent"]}
        bucket.put(f"{name}/zarr.json", json.dumps(data).encode(), replace=True)


@pytest.mark.parametrize(
    "how", ["chunk", "large", "missing", "document", "../../../evil", "solver/../../evil"]
)
def test_an_unsound_entry_is_told_and_computed_instead(how: str, tmp_path: Path, url: str) -> None:
    store = Store(tmp_path / "one")
    entry = pushed(store, url, partial(store.get_or_create, recipe(), fill(1)))
    damage(Bucket(url), f"denoise/{entry.key}", how)
    report = RecordingReport()
    mine = Store(tmp_path / "two", report)
    with opened(url, "none", mine):
        made = mine.get_or_create(recipe(), fill(1))
    assert arrays(made) == arrays(entry)
    assert report.count("pulled") == 0
    assert any("has an unsound denoise/" in remark for remark in report.remarks)
    assert not list(tmp_path.rglob("*evil*"))
    assert [name for name, _ in find_unsound(Bucket(url), mine)] == [f"denoise/{entry.key}"]


def test_a_remote_that_is_gone_is_told_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("wanpipe.cache.remote.bucket.RETRIES", 0)
    report = RecordingReport()
    store = Store(tmp_path / "cache", report)
    with opened("s3://films/gone", "steps", store):
        made = chain(store, text(store), 3)
    assert len(made) == 3
    [remark] = [one for one in report.remarks if "cannot be used" in one]
    assert "going on without it, `wanpipe cache push` sends what is missing" in remark


def test_no_credential_is_written_anywhere(place: Place, url: str) -> None:
    film = place.film("--remote", url)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in film.stderr
    for path in place.root.rglob("*"):
        if path.is_file():
            assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes()
            assert url.partition("/")[0].encode() + b"//" not in path.read_bytes()


def test_without_obstore_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'wanpipe\[remote\]'"):
        Bucket(f"file://{tmp_path}")
