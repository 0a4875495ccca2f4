"""The examples: a sweep file, and programs other than ours that carry out its plan."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.sweep_plan import known_options
from tests.pages import ROOT
from tests.sweeps.sheets import graph_of, write
from tests.workshop import Place
from wanpipe.sweeps.document import read_sweep

EXAMPLES = ROOT / "examples"
TEXT = (
    'output = "made {n}/{seed}.mp4"\n[axes]\n'
    'prompt = ["it\'s a \\"cat\\" {x} \\\\ $HOME\\n*", "a dog"]\nseed = [1, 2]\n'
)
PROGRAMS = {
    "wanpipe": '#!/bin/sh\nexec "@PYTHON@" -m wanpipe "$@"\n',
    "python3": '#!/bin/sh\nexec "@PYTHON@" "$@"\n',
    "srun": '#!/bin/sh\nexec "$@"\n',
    # carries out all tasks of an array at once, and records what it was asked for
    "sbatch": """#!@PYTHON@
import os, subprocess, sys
words = sys.argv[1:]
with open("asked", "a") as file:
    print(*words[:-2], file=file)
script, level = words[-2:]
last = int(words[words.index("--array") + 1].split("-")[1])
for task in range(last + 1):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
    subprocess.run(["bash", script, level], env=environment, check=True, stdout=sys.stderr)
print(f"{100 + len(open('asked').readlines())};cluster")
""",
}


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment with wanpipe, and with programs that stand in for Slurm's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text.replace("@PYTHON@", sys.executable))
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


def succeed(*words: object, cwd: Path, env: dict[str, str]) -> str:
    """Run a program that must succeed; what it prints."""
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sweep_file_is_one() -> None:
    sweep = read_sweep(EXAMPLES / "sweep.toml", known_options())
    assert len(sweep.videos) == 2 * 4 * 2
    assert sweep.videos[0]["prompt"] == "a cat plays the piano"
    assert sweep.varied == ("prompt", "seed", "width", "height")


def test_the_shell_script_has_no_syntax_error() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)
    assert os.access(EXAMPLES / "slurm.sh", os.X_OK)


@pytest.mark.long
@pytest.mark.slow
def test_slurm_carries_out_a_plan_level_by_level(place: Place, shell: dict[str, str]) -> None:
    write(place, TEXT)
    words = (EXAMPLES / "slurm.sh", "sweep.toml", "--partition", "gpu")
    printed = succeed(*words, cwd=place.root, env=shell)
    assert printed.splitlines() == [
        "level-000: 1 commands: job 101",
        "level-001: 3 commands: job 102",
        "level-002: 4 commands: job 103",
        "level-003: 2 commands: job 104",
    ]
    asked = (place.root / "asked").read_text().splitlines()
    assert all("--parsable --array 0-" in line for line in asked)
    assert all(line.endswith("--partition gpu") for line in asked)
    found = [line.partition("--dependency ")[2].split(" ")[0] for line in asked]
    assert found == ["", "afterany:101", "afterany:102", "afterany:103"]
    assert all(node.exists for node in graph_of(place, TEXT).nodes)
    assert succeed(*words, cwd=place.root, env=shell) == ""


@pytest.mark.slow
def test_snakemake_carries_out_a_plan(place: Place, shell: dict[str, str]) -> None:
    snakemake = shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("snakemake is not installed")
    write(place, TEXT)
    plan = succeed("wanpipe", "sweep", "sweep.toml", "--plan", cwd=place.root, env=shell)
    (place.root / "plan.jsonl").write_text(plan)
    words = (snakemake, "--snakefile", EXAMPLES / "Snakefile", "--cores", 1)
    succeed(*words, cwd=place.root, env=shell)
    assert all(node.exists for node in graph_of(place, TEXT).nodes)
