"""`make films`: a prompt reaches wanpipe as it was typed, and a new prompt makes a new text.
`make demo`: three prompts, then the first again.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUB = """#!{python}
import json, sys
with open({log!r}, "a", encoding="utf-8") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
print("an entry")
"""
PROMPTS = (
    "costs $5, or $$5",
    "$(shell touch made) ${HOME} $(HOME)",
    "`touch made` $(touch made)",
    """a "quoted" cat, it's here""",
    r"100 % # no comment \ \n, a;b & c | d > made",
)


class Films:
    """Runs `make films` with a program in the place of wanpipe that notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.program = folder / "wanpipe"
        self.program.write_text(STUB.format(python=sys.executable, log=str(self.log)), "utf-8")
        self.program.chmod(0o755)

    def make(self, *words: str, target: str = "films") -> list[list[str]]:
        """Run make, and return the arguments of every command that it ran."""
        self.log.write_text("", "utf-8")
        make = ["make", "-f", str(ROOT / "Makefile"), target, f"WANPIPE={self.program}", *words]
        subprocess.run(make, cwd=self.folder, check=True, capture_output=True, timeout=60)
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]


@pytest.fixture
def films(tmp_path: Path) -> Films:
    return Films(tmp_path)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_as_typed(prompt: str, films: Films) -> None:
    text, *_ = films.make("MODEL=a $5 model", f"PROMPT={prompt}")
    assert text == ["encode-text", "--model", "a $5 model", "--prompt", prompt]
    assert not (films.folder / "made").exists()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_make_n_runs_nothing_of_a_prompt(prompt: str, films: Films) -> None:
    assert films.make("MODEL=wan", f"PROMPT={prompt}", "-n") == []
    assert not (films.folder / "made").exists()


def test_only_a_changed_setting_runs_commands_again(films: Films) -> None:
    asked = ("MODEL=wan", "SEEDS=1 2", "DENOISE=--steps 30")
    one = films.make("PROMPT=costs $5", *asked)
    assert [words[0] for words in one] == ["encode-text", *["denoise", "decode"] * 2]
    assert one[1][-4:] == ["--seed", "1", "--steps", "30"]
    assert films.make("PROMPT=costs $5", *asked) == []
    assert len(films.make("PROMPT=costs $6", *asked)) == 5
    again = films.make("PROMPT=costs $6", *asked[:2], "DENOISE=--steps 40")
    assert [words[0] for words in again] == ["denoise", "decode"] * 2


def test_the_demo_makes_each_of_three_prompts_then_reads_the_first_again(films: Films) -> None:
    (films.folder / "pyproject.toml").touch()
    (films.folder / ".venv").mkdir()
    (films.folder / ".venv" / "ready").touch()
    *demos, last = films.make(target="demo")
    assert all(words[:5] == ["demo", "--seed", "1", "--seed", "2"] for words in demos)
    prompts = [words[-1] for words in demos]
    assert len(prompts) == 4
    assert len(set(prompts[:3])) == 3
    assert prompts[3] == "a red circle moves right on a white background"
    assert prompts[3] in prompts[:3]
    assert last[0] == "gallery"


def test_the_demo_fails_if_one_of_its_prompts_does(films: Films) -> None:
    (films.folder / "pyproject.toml").touch()
    (films.folder / ".venv").mkdir()
    (films.folder / ".venv" / "ready").touch()
    films.program.write_text("#!/bin/sh\ncase $* in *star*) exit 1; esac\n", "utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        films.make(target="demo")
