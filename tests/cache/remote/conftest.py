"""An S3 server, a place in its bucket, and a second machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import environment, s3
from tests.workshop import Place


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3() as endpoint:
        yield endpoint


@pytest.fixture
def url(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own in the bucket."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://films/{tmp_path.name}"


@pytest.fixture
def other(place: Place, tmp_path: Path) -> Place:
    """A second machine with the same model."""
    root = tmp_path / "other"
    root.mkdir()
    return Place(root, place.model)
