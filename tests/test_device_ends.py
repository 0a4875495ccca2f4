"""Several devices of which one ends, freezes, comes late, or is not like the others."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import wanpipe
from tests.conftest import DATA
from tests.groups import (
    LONG,
    SOON,
    after_steps,
    all_end,
    alone,
    begin,
    environment,
    last_step,
    launched,
    mlx_launch,
    run_of,
    same,
    told,
)
from tests.processes import children
from tests.workshop import Place
from wanpipe.backend.device import is_gpu
from wanpipe.denoising.orders import differences

pytestmark = pytest.mark.skipif(is_gpu(), reason="several processes on one GPU are no test of it")
STYLE = "a_lightning_down_up_alpha.safetensors"
# a rank on another machine: what lies in one folder on rank 0's lies in another one here
ELSEWHERE = """
from msgspec import structs
from wanpipe.denoising import worker
begin = worker.begin
def there(path):
    return path.replace({here!r}, {there!r})
def elsewhere(order, *more):
    files = {{key: there(path) for key, path in order.lora_files.items()}}
    cache, model = order.cache + "-absent", there(order.model)
    return begin(structs.replace(order, cache=cache, model=model, lora_files=files), *more)
worker.begin = elsewhere
"""


@pytest.fixture
def another(place: Place, tmp_path: Path) -> Place:
    """A second folder with the same model."""
    root = tmp_path / "another"
    root.mkdir()
    return Place(root, place.model)


@pytest.mark.long
def test_the_end_of_another_rank_is_told_and_the_same_command_goes_on(
    place: Place, another: Place
) -> None:
    long = run_of(place, "--steps", 40, "--devices", 2)
    process = begin(place, *long)
    after_steps(process, 2)
    (other,) = children(process.pid)
    os.kill(other, signal.SIGKILL)
    code, text = told(process)
    assert code == 1
    assert text == (
        "device 2 of 2 is lost: it ended; finished steps are kept, run the same command again"
    )
    kept = len(list((place.cache / "denoise").iterdir()))
    assert kept >= 2
    result = wanpipe(*long, cwd=place.root)
    assert result.code == 0, result.stderr
    assert len(result.computed("denoise")) == 40 - kept
    assert same(place.chain(last_step(result.events)), alone(another, "--steps", 40))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_ranks_end_with_the_first(number: signal.Signals, place: Place) -> None:
    process = begin(place, *run_of(place, "--steps", LONG, "--devices", 2))
    after_steps(process, 2)
    others = children(process.pid)
    assert len(others) == 1
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate(timeout=SOON)
    else:
        code, text = told(process)
        assert code == 128 + number
        assert text.startswith("interrupted; ")
    assert all_end(others)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_devices(
    before: int, after: int, place: Place, another: Place
) -> None:
    steps = ("--steps", 20)
    process = begin(place, *run_of(place, *steps, "--devices", before))
    after_steps(process, 3)
    process.kill()
    process.communicate()
    result = wanpipe(*run_of(place, *steps, "--devices", after), cwd=place.root)
    assert result.code == 0, result.stderr
    made = place.chain(last_step(result.events))
    assert same(made, alone(another, *steps))
    assert {step.made.devices for step in made} == {1, 2}


@pytest.mark.long
def test_a_rank_that_stands_still_is_told_and_ended(place: Place) -> None:
    hurry = "from wanpipe.runtime import link; link.BEAT_SECONDS, link.SILENCE_SECONDS = 0.2, 1.5"
    process = begin(place, *run_of(place, "--steps", LONG, "--devices", 2), first=hurry)
    after_steps(process, 2)
    others = children(process.pid)
    os.kill(others[0], signal.SIGSTOP)
    code, text = told(process)
    assert code == 1
    assert text.startswith("device 2 of 2 is lost: it gave no sign of life for ")
    assert all_end(others)


@pytest.mark.long
def test_the_end_of_a_rank_ends_mlx_launch(place: Place) -> None:
    with mlx_launch(place, *run_of(place, "--steps", LONG)) as process:
        after_steps(process, 2)
        ranks = children(process.pid)
        [other] = [rank for rank in ranks if "MLX_RANK=1" in environment(rank)]
        os.kill(other, signal.SIGKILL)
        _, err = process.communicate(timeout=SOON)
        assert all_end(ranks)
    [line] = [line for line in err.splitlines() if '"error"' in line]
    assert " is lost: it ended; finished steps are kept, " in line


@pytest.mark.long
def test_ctrl_c_ends_mlx_launch_and_the_same_command_goes_on(place: Place) -> None:
    command = run_of(place, "--steps", 20)
    with mlx_launch(place, *command) as process:
        after_steps(process, 2)
        ranks = children(process.pid)
        assert len(ranks) == 2
        os.killpg(process.pid, signal.SIGINT)
        assert all_end(ranks)
    kept = len(list((place.cache / "denoise").iterdir()))
    with mlx_launch(place, *command) as process:
        out, err = process.communicate(timeout=2 * SOON)
    assert out == "film.mp4\n", err
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    made = [event for event in events if event["event"] == "computed"]
    assert len([event for event in made if event["stage"] == "denoise"]) == 20 - kept


def test_a_rank_that_comes_too_late_is_named(place: Place) -> None:
    hurry = "from wanpipe.runtime import link; link.START_SECONDS = 1.5"
    with launched(place, *run_of(place), first=(hurry, "import time; time.sleep(4)")) as ranks:
        code, text = told(ranks[0])
    assert code == 1
    assert text == "all ranks must start within 1.5 s, rank 1 did not; start them together"


def test_a_rank_that_ends_while_mlx_starts_is_told(place: Place) -> None:
    hurry = "from wanpipe.backend import group; group.INIT_SECONDS = 1.5"
    ends = "import os; from wanpipe.backend import group; group.join = lambda **kinds: os._exit(3)"
    with launched(place, *run_of(place), first=(hurry, ends)) as ranks:
        code, text = told(ranks[0])
    assert code == 1
    assert text.startswith("MLX must start a group of devices within 1.5 s, and did not; ")


def test_a_rank_that_cannot_start_is_told(place: Place) -> None:
    broken = "import sys; sys.exit('no such device')"
    code = f"""
import sys
from wanpipe.denoising import team
sys.executable = {str(place.root / "python")!r}
team.start(2)
"""
    script = place.root / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{broken}"\n')
    script.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].endswith(
        "DeviceError: rank 1 ended as it started: no such device; check its device"
    )


def missing(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"no model at {folder}: config.json is missing; "


def other(folder: Path) -> str:
    file = folder / "config.json"
    digest = json.loads(file.read_text())["components"]["model"]["hash"]
    file.write_text(file.read_text().replace(digest, "0" * 32))
    return f"{folder} must be the same model on every machine, model has another content hash; "


def damaged(folder: Path) -> str:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return f"{file} does not have the content hash in config.json; "


def without_lora(folder: Path) -> str:
    (folder / STYLE).unlink()
    return f"LoRA {STYLE} was at {folder / STYLE} and is gone; "


@pytest.mark.parametrize("change", [None, missing, other, damaged, without_lora])
def test_a_rank_whose_files_differ_is_told_before_work(change: Any, place: Place) -> None:
    here, there = place.root / "here", place.root / "there"
    shutil.copytree(place.model, here)
    packed = DATA / "expected/wan21-t2v/lora_files" / f"{STYLE}.xz"
    (here / STYLE).write_bytes(lzma.decompress(packed.read_bytes()))
    shutil.copytree(here, there)
    says = change(there) if change else ""
    local, far = Place(place.root, here), ELSEWHERE.format(here=str(here), there=str(there))
    words = run_of(local, "--lora", here / STYLE, 0.5)
    with launched(local, *words, first=("", far)) as ranks:
        if change is None:
            assert ranks[0].wait(SOON) == 0
        else:
            code, text = told(ranks[0])
            assert code == 1
            assert text.startswith("device 2 of 2 on ")
            assert says in text
            assert not (place.cache / "denoise").exists()
        assert ranks[1].communicate(timeout=SOON) == ("", "")


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("import mlx.core; mlx.core.__version__ = '0.1'", "MLX 0.1 and rank 0 "),
        (
            "from wanpipe.denoising import orders; orders.code_hash = lambda: '0' * 32",
            "other code of wanpipe ",
        ),
    ],
)
def test_a_rank_with_other_software_is_told_before_work(
    first: str, says: str, place: Place
) -> None:
    with launched(place, *run_of(place), first=("", first)) as ranks:
        code, text = told(ranks[0])
        assert code == 1
        assert text.startswith(f"all ranks must be alike, rank 1 has {says}")
        assert ranks[1].communicate(timeout=SOON) == ("", "")


def test_only_what_changes_a_result_must_be_alike() -> None:
    mine = {"wanpipe": "1", "code": "a", "mlx": "0.32.4", "kind": "CPU", "host": "a", "memory": 1}
    mine |= {"exact": False}
    assert differences(mine, {**mine, "host": "b", "memory": 2}) == ""
    other = {**mine, "mlx": "0.31.0", "wanpipe": "2", "code": "b"}
    assert differences(mine, other) == "wanpipe 2 and rank 0 1, MLX 0.31.0 and rank 0 0.32.4"
    assert differences(mine, {**mine, "exact": True}) == "WANPIPE_EXACT True and rank 0 False"
