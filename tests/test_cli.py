"""The command line for users and scripts: paths, events, dry runs, names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from tests.workshop import PROMPT, SMALL, Place, inside

SIX = ("convert", "encode-text", "encode-image", "encode-video", "denoise", "decode")


def words(place: Place, *more: object) -> tuple[object, ...]:
    """The command that made the small video, or one with other options."""
    film = ("--output", "film.mp4", *SMALL)
    return ("run", "--model", place.model, "--prompt", PROMPT, *film, *more)


def everything(root: Path) -> dict[str, bytes]:
    """Every file and folder below a folder, with the contents of files."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def python(code: str, cwd: Path) -> str:
    """The output of a Python program that runs in its own process."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


def test_help_loads_no_array_library(tmp_path: Path) -> None:
    heavy = "{'mlx', 'mlx.core', 'zarr', 'numpy', 'PIL', 'tokenizers', 'ftfy', 'rich'}"
    code = f"""import sys
from wanpipe.app import main
try:
    main(["--help"])
except SystemExit:
    pass
print("loaded", sorted({heavy} & set(sys.modules)))"""
    assert python(code, tmp_path).splitlines()[-1] == "loaded []"


def test_importing_wanpipe_loads_no_stage(tmp_path: Path) -> None:
    code = """import sys, wanpipe
print([name for name in sys.modules if name.startswith(("stages", "mlx.core", "numpy", "zarr"))])
print(callable(wanpipe.denoise), callable(wanpipe.encode_text), wanpipe.__version__)"""
    loaded, rest = python(code, tmp_path).splitlines()
    assert loaded == "[]"
    assert rest.startswith("True True 0.")


@pytest.mark.parametrize("name", SIX)
def test_a_stage_can_be_used_without_click(name: str, tmp_path: Path) -> None:
    module = stages.COMMANDS[name]
    code = f"import {module} as stage; print(callable(stage.run), bool(stage.Params))"
    assert python(code, tmp_path).split() == ["True", "True"]


@pytest.mark.parametrize("command", [*stages.COMMANDS])
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    shown = inside(command, "--help", cwd=tmp_path)
    assert shown.code == 0
    assert "--quiet" in shown.paths or command == "cache"
    assert not shown.stderr


@pytest.mark.parametrize("command", [*SIX, "run"])
def test_every_stage_has_the_common_options(command: str, tmp_path: Path) -> None:
    shown = inside(command, "--help", cwd=tmp_path).paths
    common = ("--cache", "--dry-run", "--force", "--name", "--events", "--quiet")
    assert [option for option in common if option not in shown] == []


def test_stdout_has_only_paths(studio: Place) -> None:
    plain = inside(*words(studio, "--seed", 1, "--seed", 2), cwd=studio.root)
    assert plain.paths == ["film-1.mp4", "film-2.mp4"]
    text = studio.do("encode-text", "--model", studio.model, "--prompt", "a", "--prompt", "b")
    for path in text.paths:
        assert (studio.root / path / "zarr.json").is_file()


@pytest.mark.parametrize("form", [("--events", "json"), ("--events=json",)])
def test_with_json_events_every_line_of_stderr_is_an_object(
    form: tuple[str, ...], studio: Place
) -> None:
    good = inside(*words(studio, "--seed", 1), *form, cwd=studio.root)
    bad = inside(*words(studio, "--num-frames", 80), *form, cwd=studio.root)
    for result in (good, bad):
        events = [json.loads(line) for line in result.stderr.splitlines()]
        assert events
        assert all("event" in event for event in events)
    assert json.loads(bad.stderr.splitlines()[-1])["event"] == "error"
    kinds = {event["event"] for event in good.events}
    assert kinds >= {"reused", "computed", "loaded", "progress", "written"}


def test_progress_counts_every_step(studio: Place) -> None:
    made = studio.film("--seed", 1)
    steps = [event for event in made.events if event.get("stage") == "denoise" and "done" in event]
    assert [event["done"] for event in steps] == [1, 2, 3, 4]
    assert {event["total"] for event in steps} == {4}
    assert steps[-1]["seconds_left"] == 0


def test_quiet_prints_only_paths(studio: Place) -> None:
    for more in ((), ("--seed", 1)):
        result = inside(*words(studio, *more), "--quiet", cwd=studio.root)
        assert result.code == 0
        assert result.stderr == ""
        assert result.paths == ["film.mp4"]


def test_a_short_task_prints_no_progress(studio: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanpipe.cli.progress.PLAIN_INTERVAL", 600.0)  # on a busy machine too
    result = inside(*words(studio, "--seed", 1), cwd=studio.root)
    assert "0:00 left" not in result.stderr


def test_progress_is_plain_lines_without_a_terminal(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanpipe.cli.progress.PLAIN_INTERVAL", 0.0)
    result = inside(*words(studio, "--seed", 1), cwd=studio.root)
    lines = result.stderr.splitlines()
    assert any(line.startswith("denoise 4/4  ") and line.endswith("0:00 left") for line in lines)
    assert not set("\r\x1b") & set(result.stderr)


def test_a_dry_run_of_a_cached_video_computes_and_writes_nothing(studio: Place) -> None:
    before = everything(studio.root)
    plan = studio.do(*words(studio, "--dry-run"))
    statuses = [event["status"] for event in plan.events if event["event"] == "planned"]
    assert set(statuses) == {"already there"}
    assert not plan.computed()
    assert not plan.loaded()
    assert everything(studio.root) == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--guide-scale", 3), "5.0 → 3.0"),
        (("--seed", 4), "seed 0 → 4"),
        (("--scheduler", "euler"), "unipc"),
        (("--width", 48), "32 → 48"),
    ],
)
def test_a_dry_run_reports_the_difference_from_the_closest_entry(
    more: tuple[object, ...], reason: str, studio: Place
) -> None:
    before = everything(studio.root)
    plan = studio.do(*words(studio, *more, "--dry-run"))
    missing = [event for event in plan.events if event.get("status") == "to compute"]
    assert missing[0]["stage"] == "denoise"
    assert reason in missing[0]["reason"]
    assert missing[-1]["stage"] == "decode"
    assert everything(studio.root) == before


def test_a_dry_run_prints_one_sentence_per_stage(studio: Place) -> None:
    result = inside(*words(studio, "--seed", 4, "--dry-run"), cwd=studio.root)
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"encode-text [\da-f]{8}: cached", lines[0])
    assert re.fullmatch(
        r"denoise: 4 steps to compute\. "
        r"Closest run: [\da-f]{8}, which differs in seed \(0 → 4\)\.",
        lines[1],
    )
    assert re.fullmatch(
        r"denoise with model: 4 steps, at most [\d.]+ MB of memory, "
        r"plus \d+ kB for the next network, about 0:\d\d \(estimated from recent runs\)",
        lines[2],
    )


def test_a_run_computes_what_its_dry_run_plans(place: Place) -> None:
    plan = place.do(*words(place, "--dry-run"))
    assert not list(place.root.iterdir())
    keys = {event["key"] for event in plan.events if event.get("status") == "to compute"}
    made = place.do(*words(place))
    assert keys == {event["key"] for event in made.computed()}


def test_a_dry_run_of_each_stage_writes_nothing(studio: Place) -> None:
    text = studio.text()
    step = studio.made("denoise", "--from", text, *SMALL, "--stop-at", 2)
    before = everything(studio.root)
    for command in (
        ("encode-text", "--model", studio.model, "--prompt", "new"),
        ("denoise", "--from", text, *SMALL, "--seed", 5, "--name", "five"),
        ("denoise", "--from", step, "--guide-scale", 2),
        ("decode", "--from", step, "--output", "new.mp4"),
    ):
        plan = studio.do(*command, "--dry-run")
        assert [event for event in plan.events if event.get("status") == "to compute"]
    assert everything(studio.root) == before


def test_force_recomputes_cached_entries(studio: Place) -> None:
    frames = studio.frames(studio.film())
    forced = studio.film("--force")
    stages_done = [event["stage"] for event in forced.computed()]
    assert stages_done == ["encode-text", *["denoise"] * 4, "decode"]
    assert (studio.frames(forced) == frames).all()
    assert not studio.film().computed()
    assert not list((studio.cache / ".tmp").iterdir())


@pytest.mark.parametrize("form", ["name", "prefix", "key", "path", "relative path"])
def test_an_entry_is_found_by_name_prefix_and_path(form: str, studio: Place) -> None:
    text = studio.made("encode-text", "--model", studio.model, "--prompt", PROMPT, "--name", "cat")
    forms = {
        "name": "cat",
        "prefix": text.name[:8],
        "key": text.name,
        "path": text.resolve(),
        "relative path": f"./cache/encode-text/{text.name}/",
    }
    assert not studio.do("denoise", "--from", forms[form], *SMALL).computed()


def test_a_name_can_be_reused(studio: Place) -> None:
    first = studio.made("encode-text", "--model", studio.model, "--prompt", "a", "--name", "x")
    second = studio.made("encode-text", "--model", studio.model, "--prompt", "b", "--name", "x")
    step = studio.entry(studio.made("denoise", "--from", "x", *SMALL, "--stop-at", 1))
    assert step.inputs["text"] == second.name != first.name


def test_a_name_that_moves_is_told_with_its_entry_before(studio: Place) -> None:
    def remarks(prompt: str) -> list[str]:
        words = ("encode-text", "--model", studio.model, "--prompt", prompt, "--name", "moved")
        events = studio.do(*words).events
        return [event["text"] for event in events if event["event"] == "remark"]

    first = studio.text("first").name
    assert remarks("first") == []
    assert remarks("first") == []
    assert remarks("second") == [f"moved was the name of encode-text {first[:8]} before"]


def test_an_invalid_name_is_refused_before_any_work(studio: Place) -> None:
    for name in (
        "a/b",
        "..",
        "deadbeef",
        ".hidden",
        "",
        "a b",
        "-x",
        "a\x1b",
        "x" * 300,
        "é" * 150,
    ):
        more = ("denoise", "--from", studio.text(), *SMALL, "--seed", 9, "--name", name)
        studio.refuse(*more, code=2, says="a name m")


def test_the_cache_is_set_by_option_or_environment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a")
    monkeypatch.setenv("WANPIPE_CACHE", "from environment")
    assert (place.root / "from environment" / "encode-text").is_dir() is False
    place.do(*words)
    assert (place.root / "from environment" / "encode-text").is_dir()
    place.do(*words, "--cache", "from option")
    assert (place.root / "from option" / "encode-text").is_dir()
    assert not place.cache.exists()


def test_a_broken_pipe_prints_no_traceback(studio: Place) -> None:
    command = f"{sys.executable} -m wanpipe show film.mp4 | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit 0"], cwd=studio.root, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("denoise", "--nonsense"), "No such option '--nonsense'"),
        (("denoise", "--steps", "many"), "'many' is not a valid integer"),
        (("denoise", "--scheduler", "ddim"), "'ddim' is not one of"),
        (("show",), "Missing argument"),
        (("\x1b[31mx\u202e",), r"No such command '\x1b[31mx\u202e'"),
        (("denoise", "--\x9b31m"), r"No such option '--\x9b31m'"),
        (("show", "\x1b]0;x\x07"), r"no entry \x1b]0;x\x07 in cache"),
    ],
)
def test_wrong_usage_is_one_line_and_code_two(
    arguments: tuple[str, ...], says: str, place: Place
) -> None:
    place.refuse(*arguments, code=1 if "no entry" in says else 2, says=says)


def test_another_package_named_stages_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("")
    code = "from wanpipe.app import main; main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("wanpipe: error: another package named stages, at ")
    assert str(tmp_path / "stages") in done.stderr
    assert len(done.stderr.splitlines()) == 1
