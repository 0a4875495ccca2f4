"""gallery: a site of the cache's runs, written bit by bit, which changes nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import gallery as stage
from tests.conftest import DATA
from tests.gallery_site import HOSTILE, ODD, Page, cards, gallery, place_runs, snapshot
from tests.workshop import Place, inside
from wanpipe.runtime.report import Report, Task
from wanpipe.store import Store

pytestmark = pytest.mark.slow


def card_of(site: Path, seed: int, branch: bool = False) -> dict[str, str]:
    """The card of a seed; two runs have the first one."""
    found = [card for card in cards(site) if card["data-seed"] == str(seed)]
    return next(
        one for one in found if ("branches from" in json.loads(one["data-settings"])) == branch
    )


def page_of(site: Path, card: dict[str, str]) -> Page:
    return Page.read(site / "runs" / f"{card['data-key']}.html")


def notes(site: Path) -> str:
    return Page.read(site / "index.html").texts.get("note", "")


@pytest.fixture(scope="module")
def site(filled: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery(filled, folder=str(tmp_path_factory.mktemp("gallery") / "site"))


def test_each_run_has_a_card_and_a_page(site: Path, filled: Place) -> None:
    keys = {run.key for run in place_runs(filled)}
    assert len(keys) == 5
    assert {card["data-key"] for card in cards(site)} == keys
    assert {path.stem for path in (site / "runs").iterdir()} == keys
    assert notes(site) == ""


def test_every_file_that_a_page_names_exists(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Page.read(path)
        names = [value for name in ("src", "href", "poster") for value in page.values(name)]
        names += page.values("data-film")
        for strips in page.values("data-strips"):
            names += [f"../{strip['picture']}" for strip in json.loads(strips)]
        missing = [name for name in names if name[0] != "#" and not (path.parent / name).exists()]
        assert missing == []
        assert len(names) > 5


def test_a_finished_run_has_its_video_and_a_draft_its_latest_step(
    site: Path, filled: Place
) -> None:
    finished, draft = card_of(site, 1), card_of(site, 3)
    assert finished["data-state"] == "finished"
    film = (filled.root / "cat-1.mp4").read_bytes()
    assert (site / finished["data-film"]).read_bytes() == film
    assert draft["data-state"] == "unfinished"
    assert "data-film" not in draft
    page = page_of(site, draft)
    [strips] = page.values("data-strips")
    assert [strip["step"] for strip in json.loads(strips)] == [1, 2]
    assert "2 of 4 steps" in page.texts["facts"]
    assert page.texts["facts"].startswith("draft seed 3")
    assert "draft seed 3" in Page.read(site / "index.html").texts["facts"]


def test_the_poster_is_the_first_frame(site: Path, filled: Place) -> None:
    run = next(run for run in place_runs(filled) if run.seed == 2)
    frames = filled.entry(filled.cache / "decode" / run.videos[0].frames).read("frames")
    with Image.open(site / "pictures" / f"{run.videos[0].frames}.webp") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), frames[0])


def test_a_prompt_is_text_and_never_markup(site: Path) -> None:
    card = card_of(site, 10**20)
    for page in (Page.read(site / "index.html"), page_of(site, card)):
        assert [attributes.get("src") for tag, attributes in page.tags if tag == "script"] == [
            name for name in page.values("src") if name.endswith(".js")
        ]
        assert not {"b", "x"} & {tag for tag, _ in page.tags}
        assert page.values("onerror") == []
        assert HOSTILE in page.texts["prompt"]
    assert json.loads(card["data-settings"])["prompt"] == HOSTILE


def test_a_branch_shows_what_differs_from_its_trunk(site: Path) -> None:
    page = page_of(site, card_of(site, 1, branch=True))
    text = page.texts["settings"].replace("\n", " ")
    assert "From the run that it branches from SettingThereHere" in " ".join(text.split())
    assert "guidance52" in text
    tree = page.texts["tree"]
    assert "step 4/4  guidance 2.0" in tree
    assert tree.count("step 4/4") == 2
    assert f"{card_of(site, 1)['data-key']}.html" in page.values("href")


def test_a_second_time_nothing_is_written(copy: Place) -> None:
    site = gallery(copy)
    before = snapshot(site)
    gallery(copy)
    assert snapshot(site) == before


def test_a_new_run_adds_its_files_and_a_removed_one_takes_its_own(copy: Place) -> None:
    record = next(run for run in place_runs(copy) if run.seed == 2)
    path = copy.cache / ".runs" / f"{record.key}.json"
    content = path.read_bytes()
    path.unlink()
    site = gallery(copy)
    before = snapshot(site)
    path.write_bytes(content)
    gallery(copy)
    after = snapshot(site)
    own = {f"runs/{record.key}.html"}
    own |= {name for name in after if name.startswith(("pictures/", "videos/"))} - before.keys()
    assert after.keys() - before.keys() == own
    assert len(own) == 1 + len(record.steps) + 2  # the page, the steps, the poster, the video
    path.unlink()
    gallery(copy)
    assert snapshot(site).keys() == before.keys()


def test_a_selection_shows_only_what_is_asked_for(copy: Place) -> None:
    runs = {run.seed: run for run in place_runs(copy) if not isinstance(run.start, str)}
    by_key = gallery(copy, "--run", runs[1].key[:12], folder="one")
    assert [card["data-seed"] for card in cards(by_key)] == ["1"]
    by_video = gallery(copy, "--run", runs[2].videos[0].path, folder="two")
    assert [card["data-seed"] for card in cards(by_video)] == ["2"]
    by_step = gallery(copy, "--run", f"cache/denoise/{runs[3].steps[0]}", folder="three")
    assert [card["data-seed"] for card in cards(by_step)] == ["3"]
    assert len(cards(gallery(copy, "--limit", 2, folder="four"))) == 2


def test_the_cache_is_not_changed(copy: Place) -> None:
    before = {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [copy.cache, *copy.cache.rglob("*")]
    }
    gallery(copy)
    assert {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [copy.cache, *copy.cache.rglob("*")]
    } == before


def test_damaged_and_missing_things_are_told(copy: Place) -> None:
    runs = {run.seed: run for run in place_runs(copy) if not isinstance(run.start, str)}
    for chunk in (copy.cache / "denoise" / runs[2].steps[1] / "x0").glob("c.*"):
        chunk.chmod(0o644)
        chunk.write_bytes(b"no chunk")
    document = copy.cache / "denoise" / runs[3].steps[1] / "zarr.json"
    document.chmod(0o644)
    document.write_text("{")
    (copy.cache / ".index").unlink()
    shutil.rmtree(copy.cache / "decode")
    (copy.root / "cat-2.mp4").unlink()
    result = copy.do("gallery", "--output", "site")
    site = copy.root / "site"
    assert result.paths == ["site/index.html"]
    second, third = page_of(site, card_of(site, 2)), page_of(site, card_of(site, 3))
    assert "Step 2 is damaged" in second.texts["note"]
    assert "The video is gone" in second.texts["note"]
    assert [one["step"] for one in json.loads(second.values("data-strips")[0])] == [1, 3, 4]
    assert "Step 2 is damaged" in third.texts["note"]
    assert "problem" in card_of(site, 2)["data-state"]


def test_a_file_that_another_video_replaced_is_not_shown(copy: Place) -> None:
    shutil.copyfile(copy.root / "cat-1.mp4", copy.root / "cat-2.mp4")
    site = gallery(copy)
    assert "data-film" not in card_of(site, 2)
    assert "data-film" in card_of(site, 1)
    assert "The file is another video now" in notes(site)


def test_a_video_stays_in_the_gallery_when_its_file_is_gone(copy: Place) -> None:
    site = gallery(copy)
    (copy.root / "cat-2.mp4").unlink()
    gallery(copy)
    assert (site / card_of(site, 2)["data-film"]).is_file()
    assert notes(site) == ""


def test_a_record_that_cannot_be_read_is_told_and_left_out(copy: Place) -> None:
    run = next(run for run in place_runs(copy) if run.seed == 2)
    (copy.cache / ".runs" / f"{run.key}.json").write_text("{}")
    result = copy.do("gallery", "--output", "site")
    assert "1 record of runs cannot be read and is left out" in result.stderr
    assert len(cards(copy.root / "site")) == 4


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--output", "."), 2, "has files that no gallery wrote, such as"),
        (("--output", "cat-1.mp4"), 2, "a gallery is a folder, but cat-1.mp4 is a file"),
        (("--output", "nowhere/site"), 2, "no folder nowhere for the gallery site"),
        (("--output", "cache/site"), 2, "a gallery must not be in the cache"),
        (("--output", "site", "--limit", "0"), 2, "limit must be 1 or more, got 0"),
        (("--output", "site", "--run", "nothing"), 1, "no entry nothing in cache"),
        (("--output", "site", "--run", "note.txt"), 2, "no run in cache made the video note.txt"),
        (("--output", "site", "--cache", "empty"), 1, "no run in empty; make one with"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    words: tuple[str, ...], code: int, says: str, copy: Place
) -> None:
    (copy.root / "note.txt").write_text("mine")
    copy.refuse("gallery", *words, code=code, says=says)


def test_files_of_others_in_its_folder_stay(copy: Place) -> None:
    site = gallery(copy)
    for name in ("mine.txt", "runs/mine.html", "pictures/cat.webp"):
        (site / name).write_text("mine")
    gallery(copy, "--limit", 1)
    assert (site / "mine.txt").read_text() == "mine"
    assert (site / "runs/mine.html").read_text() == "mine"
    assert (site / "pictures/cat.webp").read_text() == "mine"
    assert len(cards(site)) == 1


def test_an_empty_folder_and_a_link_to_one_are_used(copy: Place) -> None:
    (copy.root / "empty").mkdir()
    (copy.root / "empty" / ".DS_Store").write_text("")
    (copy.root / "link").symlink_to("empty")
    gallery(copy, folder="link")
    assert (copy.root / "link").is_symlink()
    assert (copy.root / "empty" / "index.html").is_file()


class Stopping(Report):
    """Ends the work after some units of it, as Ctrl-C does."""

    def __init__(self, units: int) -> None:
        self.units = units

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        if task.done == self.units:
            raise KeyboardInterrupt


@pytest.mark.parametrize("units", [1, 3, 5])
def test_an_interruption_leaves_the_earlier_gallery_whole(units: int, copy: Place) -> None:
    site = gallery(copy, "--limit", 2)
    before = snapshot(site)
    with pytest.raises(KeyboardInterrupt):
        stage.run(stage.Params(output=site), Store(copy.cache, Stopping(units)))
    after = snapshot(site)
    assert {name: after[name] for name in before} == before
    assert [name for name in after if ".wanpipe-" in name] == [".wanpipe-gallery"]
    gallery(copy)
    assert len(cards(site)) == 5


def test_drafts_of_a_killed_process_are_removed(copy: Place) -> None:
    site = gallery(copy)
    (site / "pictures" / ".wanpipe-0123abcd.webp").write_bytes(b"half")
    (site / "pictures" / f"{'0' * 32}.webp").write_bytes(b"of a run that is gone")
    gallery(copy)
    assert [path.name for path in (site / "pictures").iterdir() if len(path.name) != 37] == []
    assert not (site / "pictures" / f"{'0' * 32}.webp").exists()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which a shell finds wanpipe."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "wanpipe"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wanpipe "$@"\n')
    script.chmod(0o755)
    root = str(Path(__file__).parent.parent)
    yield {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": root}


@pytest.mark.parametrize(("seed", "branch"), [(10**20, False), (1, True), (3, False)])
def test_the_command_of_a_page_makes_the_run_again(
    seed: int, branch: bool, copy: Place, program: dict[str, str]
) -> None:
    site = gallery(copy, folder=ODD)
    card = card_of(site, seed, branch)
    command = page_of(site, card).texts["command"]
    done = {path.name for path in (copy.cache / "denoise").iterdir()}
    result = subprocess.run(
        ["bash", "-c", command], cwd=copy.root, env=program, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    [run] = [run for run in place_runs(copy) if run.key == card["data-key"]]
    new = {path.name for path in (copy.cache / "denoise").iterdir()} - done
    assert new == set(run.steps) - done  # the draft is finished, and nothing else is computed
    assert (copy.root / f"run-{run.key[:8]}.mp4").is_file()
    assert len(place_runs(copy)) == 5


def test_a_cache_of_wanpipe_0_1_0_has_a_gallery(tmp_path: Path) -> None:
    with tarfile.open(DATA / "cache-0.1.0.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    result = inside("gallery", "--output", "site", cwd=tmp_path)
    assert result.code == 0, result.stderr
    shown = cards(tmp_path / "site")
    assert len(shown) > 3
    assert "finished" in {card["data-state"] for card in shown}
