"""Stores and servers of other kinds: what they lack is told or made up for."""

import http.server
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from stages import convert
from tests.buckets import create_bucket, gcs, moto, s3_environment, serving
from tests.store.builders import RecordingReport, arrays, fill, forbidden, recipe, text, tree
from tests.workshop import PROMPT, Place, inside
from wanpipe.cache.remote import gc
from wanpipe.cache.remote.bucket import PROBE, Bucket, RemoteError, reason
from wanpipe.cache.remote.push import push
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import list_remote
from wanpipe.cache.validate import InvalidEntryError
from wanpipe.demo import CHECKPOINTS
from wanpipe.store import Store
from wanpipe.store.schema import STAGES


@pytest.fixture(scope="module")
def google() -> Iterator[Any]:
    with gcs() as server:
        yield server


@pytest.fixture
def gs(google: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a bucket of Google Cloud Storage."""
    for name, value in google.variables.items():
        monkeypatch.setenv(name, value)
    place: str = google.place(tmp_path)
    return place


def test_google_cloud_storage_shares_texts_and_models(
    gs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANPIPE_REMOTE", gs)
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    made = inside("convert", "--checkpoint-dir", CHECKPOINTS / "t2v", "--push", "all", cwd=one)
    key = Path(made.paths[-1]).name
    asked = ("encode-text", "--model", key, "--prompt", PROMPT)
    first = inside(*asked, cwd=one)
    second = inside(*asked, "--events", "json", cwd=two)
    assert first.paths == second.paths
    assert [event["event"] for event in second.events if event.get("stage") == "encode-text"] == [
        "pulled",
        "reused",
    ]
    assert tree(one / "cache/convert" / key) == tree(two / "cache/convert" / key)
    listed = inside("cache", "ls", "--remote", cwd=two)
    assert sorted(listed.paths) == sorted([f"convert/{key}", first.paths[-1].partition("/")[2]])
    assert inside("cache", "verify", "--remote", cwd=two).paths == []


def test_google_cloud_storage_keeps_the_first_of_two_pushes(gs: str, tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first, second = (store.get_or_create(recipe(), fill(n)) for n, store in enumerate((one, two)))
    bucket = Bucket(gs)
    assert push(bucket, first)
    assert not push(bucket, second)
    assert not bucket.put(f"denoise/{first.key}/zarr.json", b"{}")
    three = Store(tmp_path / "three")
    with opened(gs, None, three):
        assert arrays(three.get_or_create(recipe(), forbidden)) == arrays(first)
    gone = gc.collect(bucket, three, 1.0, now=1e11)
    assert gone == [f"denoise/{first.key}"]
    assert [path for path, _, _ in bucket.objects("")] == [PROBE]


@contextmanager
def careless(header: str) -> Iterator[str]:
    """An S3 server that ignores a header; gives its endpoint."""
    app = DomainDispatcherApplication(create_backend_app)

    def ignoring(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ.pop(header, None)
        return app(environ, start)

    with serving(ignoring) as endpoint:
        create_bucket(endpoint)
        yield endpoint


def test_a_server_that_writes_over_what_exists_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, url = RecordingReport(), f"s3://films/{tmp_path.name}"
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two", report)
    with moto() as sound, careless("HTTP_IF_NONE_MATCH") as endpoint:  # both have the same objects
        for name, value in sound.variables.items():
            monkeypatch.setenv(name, value)
        with opened(url, None, one):
            shared = text(one, "a cat")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with opened(url, None, two):
            text(two, "a dog")
            assert two.remote is not None
            two.remote.worker.wait(0)  # type: ignore[attr-defined]
            text(two, "a bird")
            text(two, "a cat")
        assert report.count("pulled") == 1
        [remark] = report.remarks
        assert "its server writes over objects that must stay (it ignores If-None-Match)" in remark
        assert list_remote(Bucket(url), list(STAGES)) == [f"encode-text/{shared.key}"]
        result = inside("cache", "push", "--remote", url, cwd=tmp_path)
        assert result.code == 0
        result = inside("cache", "push", "--remote", url, "--cache", two.root, cwd=tmp_path)
        assert (result.code, result.paths) == (1, [])


def test_a_web_server_that_sends_no_ranges_gives_models_too(tmp_path: Path) -> None:
    share = tmp_path / "share"
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    with opened(f"file://{share}", "all", one):
        model = convert.run(convert.Params(checkpoint_dir=CHECKPOINTS / "t2v"), one)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(share))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        with opened(f"http://127.0.0.1:{site.server_port}", None, two):
            assert two.find("convert", model.name) is not None
        site.shutdown()
    assert tree(two.path("convert", model.name)) == tree(model)


def test_an_s3_server_that_sends_no_ranges_gives_models_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pulled = bytes(range(256)) * 40, tmp_path / "pulled"
    with careless("HTTP_RANGE") as endpoint:
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        bucket = Bucket(f"s3://films/{tmp_path.name}")
        bucket.put("model", data)
        pulled.write_bytes(data[:100])  # of an earlier pull
        bucket.download("model", pulled, len(data))
        assert pulled.read_bytes() == data
        with pytest.raises(InvalidEntryError, match="must have 5000 bytes, got 10240"):
            bucket.download("model", tmp_path / "short", 5000)
    assert (tmp_path / "short").stat().st_size <= 5000


def test_a_directory_keeps_nothing_of_what_is_deleted(tmp_path: Path) -> None:
    store, url = Store(tmp_path / "cache"), f"file://{tmp_path}/share"
    with opened(url, None, store):
        text(store)
    bucket = Bucket(url)
    assert len(gc.collect(bucket, store, 1.0, now=1e11)) == 1
    assert list_remote(bucket, list(STAGES)) == []


def test_objects_are_deleted_though_some_are_gone_already(tmp_path: Path) -> None:
    bucket = Bucket(f"file://{tmp_path}/share")
    paths = [f"x/{number}" for number in range(40)]
    for path in paths:
        bucket.put(path, b"1")
    bucket.delete(["x/gone", *paths])
    assert bucket.objects("x") == []


def test_a_bucket_that_does_not_exist_is_told_and_ends_no_run(
    gs: str, tmp_path: Path, place: Place
) -> None:
    made = place.do(
        "encode-text", "--model", place.model, "--prompt", "a", "--remote", "gs://none/x"
    )
    assert made.code == 0
    [line] = [line for line in made.stderr.splitlines() if "none/x" in line]
    told = json.loads(line)["text"] if line.startswith("{") else line
    assert "404 Not Found: NoSuchBucket: The specified bucket does not exist" in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "Generic S3 error: Error performing PUT http://h/films/a in 2.6ms, after 4 retries, "
            "max_retries: 4, retry_timeout: 30s  - HTTP error: error sending request\n\n"
            "Debug source:\nGeneric {}",
            "Generic S3 error: Error performing PUT http://h/films/a: HTTP error: error sending "
            "request",
        ),
        (
            "Generic S3 error: Error performing GET http://h/films?X-Amz-Signature=hunter2 in 48ms "
            '- Server returned non-2xx status code: 403 Forbidden: <?xml version="1.0"?>\n<Error>'
            "<Code>AccessDenied</Code><Message>You may not.\nReally.</Message></Error>\n\nDebug "
            "source:\nGeneric {}",
            "Generic S3 error: Error performing GET http://h/films?…: Server returned non-2xx "
            "status code: 403 Forbidden: AccessDenied: You may not.",
        ),
        (
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error",
            "no credentials in the environment, and this machine has no role that gives them",
        ),
    ],
)
def test_an_error_of_a_server_is_told_in_one_line(text: str, says: str) -> None:
    assert reason(RemoteError(text)) == says
