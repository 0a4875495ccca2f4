"""A command works with closed, full and foreign streams, and prints where it should."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.workshop import SMALL, Models, Place
from wanpipe.cache.verify import find_damaged
from wanpipe.store import Store

pytest_plugins = ["tests.workshop"]
WANPIPE = f"{sys.executable} -m wanpipe"


def shell(command: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of bash; `wanpipe` in it is ours."""
    script = f'wanpipe() {{ {WANPIPE} "$@"; }}; export LC_ALL=C.UTF-8; {command}'
    settings = "".join(f"export {name}={value}; " for name, value in environment.items())
    return subprocess.run(["bash", "-c", settings + script], cwd=cwd, capture_output=True)


def run(place: Place, *more: object) -> str:
    words = ("run", "--model", place.model, "--prompt", "cat", "--output", "new.mp4", *SMALL, *more)
    return " ".join(["wanpipe", *map(str, words)])


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-"])
def test_a_run_works_with_closed_streams(closed: str, place: Place) -> None:
    done = shell(f"{run(place, '--events', 'json')} {closed}", place.root)
    assert (done.returncode, done.stdout) == (0, b"new.mp4\n")
    assert (place.root / "new.mp4").stat().st_size > 500
    if "2>" not in closed:
        assert [json.loads(line) for line in done.stderr.splitlines()]


def test_a_run_works_with_a_closed_stdout(place: Place) -> None:
    done = shell(f"{run(place)} >&-", place.root)
    assert done.returncode == 0, done.stderr
    assert (place.root / "new.mp4").exists()


def test_an_error_is_no_output_where_stderr_is_closed(place: Place) -> None:
    done = shell("wanpipe show nothing --events json 2>&-", place.root)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


@pytest.mark.parametrize(
    "command", ["wanpipe show film.mp4", "wanpipe --help", "wanpipe log --help", "wanpipe cache ls"]
)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(command: str, studio: Place) -> None:
    done = shell(f"{command} | true; exit ${{PIPESTATUS[0]}}", studio.root)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


def test_a_full_disk_under_stdout_is_an_error(studio: Place) -> None:
    done = shell("wanpipe show film.mp4 > /dev/full", studio.root)
    assert done.returncode == 1
    says = b"wanpipe: error: stdout cannot be written: No space left on device; make room"
    assert done.stderr.startswith(says) and done.stderr.count(b"\n") == 1


def test_a_run_whose_messages_nobody_reads_leaves_nothing(place: Place) -> None:
    done = shell(f"{run(place)} 2>&1 | true; exit ${{PIPESTATUS[0]}}", place.root)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")
    assert [path.name for path in place.root.iterdir()] == ["cache"]
    assert not list(place.cache.glob(".tmp/*"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_can_print_every_prompt(encoding: str, studio: Place) -> None:
    studio.text("一只猫 é \u202e\x1b[31m")
    for command in ("cache ls", "cache ls --json", "show 猫", "show 猫 --events json"):
        done = shell(f"wanpipe {command}", studio.root, PYTHONIOENCODING=encoding)
        assert b"Traceback" not in done.stderr
        assert not set(b"\x1b\x9b") & set(done.stdout + done.stderr)
        text = (done.stdout + done.stderr).decode(encoding)
        if "json" in command:
            assert "猫" in " ".join(str(json.loads(line)) for line in text.splitlines())
        else:
            assert ("猫" if encoding == "utf-8" else r"\u732b") in text


def test_a_path_is_printed_byte_for_byte(studio: Place) -> None:
    done = shell("wanpipe cache export film $'caf\\xe9.zip'", studio.root)
    assert done.returncode == 1
    studio.do("encode-text", "--model", studio.model, "--prompt", "a", "--name", "a")
    done = shell("wanpipe cache export a $'caf\\xe9.zip'", studio.root)
    assert done.stdout == b"caf\xe9.zip\n", done.stderr


@pytest.mark.parametrize("action", ["error", "default"])
def test_warnings_of_libraries_do_not_reach_users(action: str, place: Place) -> None:
    done = shell(run(place), place.root, PYTHONWARNINGS=action)
    assert done.returncode == 0
    assert b"Warning" not in done.stderr


def test_paths_that_are_not_utf8_work_throughout(place: Place, models: Models) -> None:
    i2v = Place(place.root, models("wan22-i2v-a14b"))
    image, film = "caf\udce9.png", "caf\udce9.mp4"
    Image.new("RGB", (32, 32), "red").save(place.root / image)
    for told in ("written", "reused"):
        made = i2v.film("--image", image, "--output", film, "--cache", "c\udce9")
        assert (made.events[-1]["event"], made.events[-1]["path"]) == (told, film)
    encoded = next((place.root / "c\udce9" / "encode-image").iterdir())
    assert place.entry(encoded).made.image == r"caf\udce9.png"
    assert place.do("show", film).paths[0] == "video"
    assert not list(find_damaged(Store(place.root / "c\udce9")))


def test_a_model_at_a_path_that_is_not_utf8_is_refused(place: Place) -> None:
    shutil.copytree(place.model, place.root / "m\udce9")
    words = ("encode-text", "--prompt", "x", "--model", "m\udce9")
    place.refuse(*words, code=1, says="the path of a model must be UTF-8")
