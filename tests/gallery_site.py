"""Galleries to look at: a cache with runs of every kind, and a reader of the pages."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.workshop import SMALL, Place
from wanpipe.store import Run, Store

HOSTILE = (
    "</script><script>document.title='hacked'</script><img src=x onerror=\"window.hacked=1\">"
    "\u2028'\"&amp;<!--<b>bold</b> {{ 7*7 }} \\u0041 #?%25"
)
ODD = 'a gallery #1? 100%25 "quoted" \'n <b>'  # the name of a folder
VOID = {"meta", "link", "img", "input", "br"}


@dataclass
class Page(HTMLParser):
    """The elements of a page: names with attributes, and the text of those that have an id."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @staticmethod
    def read(path: Path) -> "Page":
        """Read a page."""
        page = Page()
        page.feed(path.read_text("utf-8"))
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(attributes.get("id", attributes.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for name in {name for name in self.open if name}:
            self.texts[name] = self.texts.get(name, "") + data

    def values(self, name: str) -> list[str]:
        """The values of an attribute, in the order of the page."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def gallery(place: Place, *options: object, folder: str = "site") -> Path:
    """Write the gallery of a place; its folder."""
    place.do("gallery", "--output", folder, *options)
    return place.root / folder


def cards(site: Path) -> list[dict[str, str]]:
    """The attributes of the cards of a gallery, in order."""
    page = Page.read(site / "index.html")
    return [attributes for _, attributes in page.tags if attributes.get("class") == "card"]


def snapshot(site: Path) -> dict[str, tuple[int, int]]:
    """The files of a gallery with their inode and time of change."""
    return {
        path.relative_to(site).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in site.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture(scope="session")
def filled(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with two videos of a prompt, one of a hostile prompt, a draft, and a branch of the
    first video. Never to be changed.
    """
    place = Place(tmp_path_factory.mktemp("filled"), models("wan21-t2v"))
    last = ("--model", place.model, *SMALL, "--fps", 1)
    for seed in (1, 2):
        place.do("run", *last, "--prompt", "a cat", "--seed", seed, "--output", f"cat-{seed}.mp4")
    place.do("run", *last, "--prompt", HOSTILE, "--seed", 10**20, "--output", "odd.mp4")
    text = place.text("a dog runs")
    place.do("denoise", "--from", text, *SMALL, "--seed", 3, "--stop-at", 2, "--name", "draft")
    first = next(run for run in place_runs(place) if run.seed == 1)
    second = place.cache / "denoise" / first.steps[1]
    branch = place.made("denoise", "--from", second, "--guide-scale", 2)
    place.do("decode", "--from", branch, "--output", "branch.mp4", "--fps", 1)
    return place


@pytest.fixture
def copy(filled: Place, tmp_path: Path) -> Place:
    """A copy of that place, to change; its records name the copied videos."""
    root = tmp_path / "copy"
    shutil.copytree(filled.root, root)
    for record in (root / "cache" / ".runs").iterdir():
        record.write_text(record.read_text("utf-8").replace(str(filled.root), str(root)), "utf-8")
    return Place(root, filled.model)


def place_runs(place: Place) -> list[Run]:
    """The runs of a place."""
    return Store(place.cache).runs.all()
