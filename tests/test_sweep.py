"""sweep: the command, its plan for other programs, its table and its contact sheet."""

import csv
import json
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from stages.sweep import command
from tests.commands import succeed
from tests.sweeps.sheets import SEEDS, graph_of, write
from tests.workshop import Place, files, inside
from wanpipe.store import Store
from wanpipe.sweeps.node import Graph, Outcome, State

FOUR = '[axes]\nprompt = ["a cat", "a dog"]\nseed = "1-2"\n'


@pytest.fixture
def serial(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose sweeps are carried out in this process. Seed 13 has no luck."""

    def carry_out(graph: Graph, options: Any, store: Store, crew: None) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        for node in graph.nodes:
            ended = {found[key].state for key in node.needs if key in found}
            state: State = "exists" if node.exists else "done"
            if ended & {"failed", "skipped"}:
                state = "skipped"
            elif "13" in node.command:
                state = "failed"
            elif not node.exists:
                place.do(*node.command)
            error = "no luck" if state in ("failed", "skipped") else None
            found[node.key] = Outcome(key=node.key, state=state, error=error, seconds=1.0)
        return found

    monkeypatch.setattr("wanpipe.sweeps.run.at_work", lambda options, store: nullcontext())
    monkeypatch.setattr("wanpipe.sweeps.run.carry_out", carry_out)
    return place


def plan_of(place: Place, *more: object) -> list[dict[str, Any]]:
    """The lines of --plan for the sweep file of a place."""
    words = [place.root / "sweep.toml", "--plan", "--cache", place.cache, *more]
    result = CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_dry_run_tells_what_there_is_to_do_and_writes_nothing(place: Place) -> None:
    write(place, FOUR)
    before = files(place.root)
    result = inside("sweep", "sweep.toml", "--dry-run", "--draft", 2, cwd=place.root)
    assert result.code == 0, result.stderr
    assert result.paths == [str(place.root / f"{n}.mp4") for n in range(1, 5)]
    first, *_, last = result.stderr.splitlines()
    assert first == "encode-text: 2 to compute"
    assert "denoise: 8 to compute (16 steps)" in result.stderr
    assert last.startswith("4 videos, 4 to make: ")
    assert last.endswith("no time estimate until each stage has run on this device")
    assert files(place.root) == before


def test_a_sweep_makes_every_video_its_table_and_its_sheet(serial: Place) -> None:
    write(serial, FOUR.replace("[axes]", 'output = "new/{prompt}-{seed}.mp4"\n[axes]'))
    words = ("sweep", "sweep.toml", "--table", "all.csv", "--sheet", "all.png")
    result = inside(*words, cwd=serial.root)
    assert result.code == 0, result.stderr
    names = [f"new/a-{who}-{seed}.mp4" for who in ("cat", "dog") for seed in (1, 2)]
    assert result.paths == [str(serial.root / name) for name in names]
    with (serial.root / "all.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["prompt"], row["seed"], row["state"]) for row in table] == [
        (prompt, seed, "done") for prompt in ("a cat", "a dog") for seed in "12"
    ]
    assert all((serial.cache / "decode" / row["decode"]).is_dir() for row in table)
    assert table[0]["seconds"] == "3.0"
    assert Image.open(serial.root / "all.png").size[1] > 4 * 100
    again = inside("sweep", "sweep.toml", "--table", "all.json", cwd=serial.root)
    assert "4 videos, 0 to make" in again.stderr
    made = json.loads((serial.root / "all.json").read_text())
    assert [row["state"] for row in made] == ["exists"] * 4
    assert made[0]["seed"] == 1


def test_one_video_that_fails_does_not_stop_the_others(serial: Place) -> None:
    write(serial, FOUR.replace('"1-2"', "[13, 1]"))
    result = inside("sweep", "sweep.toml", "--table", "all.csv", cwd=serial.root)
    assert result.code == 1
    assert result.paths == [str(serial.root / f"{n}.mp4") for n in (2, 4)]
    assert "2 of 4 videos could not be made; 1.mp4: no luck; run the same" in result.stderr
    with (serial.root / "all.csv").open(newline="") as file:
        states = [(row["state"], row["error"]) for row in csv.DictReader(file)]
    assert states == [("skipped", "no luck"), ("done", "")] * 2


def test_the_plan_is_json_that_other_programs_can_carry_out(place: Place) -> None:
    write(place, FOUR)
    before = files(place.root)
    rows = plan_of(place, "--draft", 2)
    assert files(place.root) == before
    assert [row["stage"] for row in rows].count("denoise") == 8
    done: set[str] = set()
    for level in range(5):
        for row in [row for row in rows if row["level"] == level]:
            assert set(row["needs"]) <= done
            assert shlex.split(row["shell"]) == row["command"]
            assert row["command"][0] == "wanpipe"
            place.do(*row["command"][1:])
            assert Path(row["path"]).is_dir()
        done |= {row["key"] for row in rows if row["level"] == level}
    assert done == {row["key"] for row in rows}
    assert {Path(row["output"]).is_file() for row in rows if row["output"]} == {True}
    assert {row["level"] for row in plan_of(place)} == {None}


def test_a_plan_opens_no_tokenizer_for_remembered_texts(place: Place, opened: list[str]) -> None:
    write(place, FOUR)
    rows = plan_of(place)
    assert len(opened) == 1
    place.do("encode-text", "--model", place.model, "--prompt", "a cat", "--prompt", "a dog")
    assert len(opened) == 2
    shutil.rmtree(place.cache / "encode-text")
    assert plan_of(place) == rows
    assert len(opened) == 2


def test_what_the_remote_has_is_not_planned_again(place: Place, tmp_path: Path) -> None:
    write(place, SEEDS)
    remote = ("--remote", f"file://{tmp_path / 'share'}")
    for node in graph_of(place, SEEDS).nodes:
        place.do(*node.command, *remote)
    (place.root / "1.mp4").unlink()
    elsewhere = ("--cache", tmp_path / "elsewhere", *remote)
    first, second = plan_of(place, *elsewhere)
    assert (first["stage"], first["exists"], first["needs"]) == ("decode", False, [])
    assert second["exists"]
    result = place.do(*first["command"][1:], *elsewhere)
    assert not result.computed()
    assert (place.root / "1.mp4").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--draft", 0), "draft must be at least 1 step, got 0"),
        (("--table", "all.xls"), "--table must end in .csv or .json, got all.xls"),
        (("--sheet", "all.jpg"), "--sheet must end in .png, got all.jpg"),
        (("--retries", -1), "Invalid value for '--retries'"),
    ],
)
def test_wrong_options_are_refused(words: tuple[object, ...], says: str, place: Place) -> None:
    write(place, SEEDS)
    place.refuse("sweep", "sweep.toml", *words, code=2, says=says)


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_of_real_workers_makes_its_videos(place: Place) -> None:
    write(place, SEEDS)
    result = succeed("sweep", "sweep.toml", "--workers", 2, cwd=place.root)
    assert result.paths == [str(place.root / "1.mp4"), str(place.root / "2.mp4")]
    assert all(Path(path).is_file() for path in result.paths)
    assert [event["missing"] for event in result.events if event["event"] == "sweep"] == [2]
