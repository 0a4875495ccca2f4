"""The commands for a whole remote: push, pull, list, collect; and which URLs are refused."""

from pathlib import Path

import pytest

from tests.store.builders import chain, text
from tests.workshop import Place, inside
from wanpipe.cache.remote.tier import opened
from wanpipe.store import Store
from wanpipe.store.schema import STAGES


def test_cache_push_sends_what_is_missing(place: Place, other: Place, url: str) -> None:
    place.film()
    missing = place.do("cache", "push", "--remote", url)
    assert len(missing.paths) == 3
    assert place.do("cache", "push", "--remote", url).paths == []
    assert len(place.do("cache", "push", "--push", "steps", "--remote", url).paths) == 3
    assert other.film("--remote", url).computed() == []


def test_cache_pull_brings_what_an_entry_was_made_from(
    place: Place, other: Place, url: str
) -> None:
    film = place.film("--remote", url)
    frames_of = next(e["key"] for e in film.events if e.get("stage") == "decode" and "key" in e)
    result = other.do("cache", "pull", frames_of[:8], "--remote", url)
    assert [Path(path).name for path in result.paths] == [frames_of]
    assert sorted(p.name for p in other.cache.iterdir() if p.name in STAGES) == [
        "decode",
        "denoise",
        "encode-text",
    ]
    assert other.film().computed() == []


def test_a_remote_is_listed(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")
    with opened(url, None, store):
        entry = text(store)
        chain(store, entry, 2)
    monkeypatch.setenv("WANPIPE_REMOTE", url)
    listed = inside("cache", "ls", "--remote", "--stage", "encode-text", cwd=tmp_path)
    assert listed.paths == [f"encode-text/{entry.key}"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/films", "--remote must be a URL with one of s3://"),
        ("s3://user:hunter2@films/x", "--remote must not hold a password or a query (s3://…)"),
        ("https://host/films?sig=hunter2", "--remote must not hold a password or a query"),
        ("films", "--remote must be a URL"),
        ("ftp://user:hunter2@host/films", "--remote must not hold a password or a query (ftp://…)"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_secret(
    url: str, says: str, place: Place
) -> None:
    place.refuse("cache", "push", "--remote", url, code=2, says=says)
    assert "hunter2" not in inside("cache", "push", "--remote", url, cwd=place.root).stderr
