"""A user's folder to try commands in: tiny converted models, a film to start from, and commands run
within this process.

Real processes are in tests.commands; here nothing is started, so a test takes tenths of a second.
"""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import tokenizers

from stages import convert
from tests.commands import Result
from wanpipe.app import main
from wanpipe.store import Entry, Run, Store
from wanpipe.store.entry import read_entry

Models = Callable[[str], Path]
SMALL = ("--width", 32, "--height", 32, "--num-frames", 5, "--steps", 4)
PROMPT = "a cat plays the piano"


def inside(*arguments: object, cwd: Path) -> Result:
    """Run a command in `cwd` as `wanpipe` would, in this process."""
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        contextlib.chdir(cwd),
        patch.object(sys, "argv", ["wanpipe", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main(words)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("{")]
    return Result(
        code, out.getvalue().split(), err.getvalue(), [json.loads(line) for line in lines]
    )


def files(root: Path) -> dict[str, int]:
    """Every file below, with its time of change; remembered hashes are no result."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".index", ".hashes.json")
    }


@dataclass(frozen=True)
class Place:
    """A folder with a cache, in which one model is used."""

    root: Path
    model: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def do(self, *arguments: object) -> Result:
        """Run a command that must succeed, with its events."""
        result = inside(*arguments, "--events", "json", cwd=self.root)
        assert result.code == 0, result.stderr
        return result

    def film(self, *more: object, prompt: str = PROMPT) -> Result:
        """Make the small film, or one that differs by the options given."""
        chosen = ("--model", self.model, "--prompt", prompt, *SMALL, *more)
        return self.do("run", "--output", "film.mp4", *chosen)

    def made(self, *arguments: object) -> Path:
        """Run a command that must succeed; the last path it prints."""
        return self.root / self.do(*arguments).paths[-1]

    def text(self, prompt: str = PROMPT) -> Path:
        """The entry of a prompt."""
        return self.made("encode-text", "--model", self.model, "--prompt", prompt)

    def refuse(self, *arguments: object, code: int, says: str) -> None:
        """Run a command that must be refused at once: in one line that says `says`, with nothing
        printed or written.
        """
        before = files(self.root)
        result = inside(*arguments, cwd=self.root)
        lines = result.stderr.splitlines()
        assert result.code == code, result.stderr
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("wanpipe: error: ")
        assert says in lines[0], lines[0]
        assert not result.paths
        assert files(self.root) == before

    def entry(self, path: Path | str) -> Entry:
        """Read an entry that a command printed, its arrays checked."""
        entry = read_entry(self.root / path)
        entry.verify()
        return entry

    def frames(self, film: Result) -> np.ndarray:
        """The frames that the last decode of these events computed or found."""
        done = [event for event in film.events if event["event"] in ("computed", "reused")]
        paths = [event["path"] for event in done if event["stage"] == "decode"]
        return self.entry(paths[-1]).read("frames")

    def run(self, step: Path | str) -> Run:
        """The latest run of a step."""
        return Store(self.cache).runs.of(Path(step).name)[0]

    def chain(self, last: Path | str) -> list[Entry]:
        """The steps from the noise to `last`."""
        steps = [self.entry(last)]
        while steps[0].parent:
            steps.insert(0, self.entry(self.cache / "denoise" / steps[0].parent))
        return steps


@pytest.fixture(scope="session")
def models(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Gives the converted float32 model of a tiny checkpoint, converted once; read-only by
    agreement.
    """
    root = tmp_path_factory.mktemp("models")

    @cache
    def converted(name: str) -> Path:
        params = convert.Params(
            checkpoint_dir=checkpoints / name, output_dir=root / name, dtype="float32"
        )
        return convert.run(params, Store(root / "cache"))

    return converted


@pytest.fixture
def place(models: Models, tmp_path: Path) -> Place:
    """An empty folder and the tiny Wan2.1 T2V."""
    return Place(tmp_path, models("wan21-t2v"))


@pytest.fixture(scope="session")
def finished(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder in which the small film was made; never to be changed."""
    place = Place(tmp_path_factory.mktemp("finished"), models("wan21-t2v"))
    place.film()
    return place


@pytest.fixture
def studio(finished: Place, tmp_path: Path) -> Place:
    """A copy of the folder with the small film, to work in."""
    root = tmp_path / "studio"
    shutil.copytree(finished.root, root)
    return Place(root, finished.model)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokenizers that are opened from now on."""
    found: list[str] = []

    def from_str(text: str) -> tokenizers.Tokenizer:
        found.append(text)
        return real.from_str(text)

    real = tokenizers.Tokenizer
    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_str=from_str))
    return found
