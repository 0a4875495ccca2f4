"""An object store, a place in it, and a second machine.

By default the store is an S3 server in this process. `pytest tests/cache/remote --remote URL` runs
the tests in another one, with the credentials of the environment.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import Server, moto
from tests.workshop import Place


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    url: str | None = request.config.getoption("--remote")
    if url is not None:
        yield Server(url, "", lambda _: {})
        return
    with moto() as made:
        yield made


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own in the store."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server.place(tmp_path)


@pytest.fixture
def other(place: Place, tmp_path: Path) -> Place:
    """A second machine with the same model."""
    root = tmp_path / "other"
    root.mkdir()
    return Place(root, place.model)
