"""doctor: says what is broken and how to mend it, shows no credential, and leaves nothing."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import doctor
from tests.workshop import Place, files, inside
from wanpipe.errors import WanpipeError

CHECKS = ["wanpipe", "device", "compute", "memory", "ffmpeg", "disk", "cache", "extras"]


def examine(place: Place, *more: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by check."""
    result = inside("doctor", "--json", *more, cwd=place.root)
    assert result.code == code, result.stderr
    lines = " ".join(result.paths).replace("} {", "}\n{").splitlines()
    return {found["check"]: found for found in map(json.loads, lines)}


def test_a_sound_installation_passes_every_check_and_nothing_is_left(studio: Place) -> None:
    before = files(studio.root)
    found = examine(studio)
    assert [*found] == [*CHECKS, "environment"]
    # this machine may have little memory, or a disk that is nearly full
    states = {check: found[check]["state"] for check in CHECKS if check not in ("memory", "disk")}
    assert set(states.values()) == {"ok"}, found
    assert "float32" in found["compute"]["text"]
    assert "with libx264, libvpx-vp9, gif" in found["ffmpeg"]["text"]
    assert found["cache"]["text"].startswith("6 entries, 1 run, ")
    assert found["cache"]["text"].endswith("; 0 damaged, 0 set aside")
    assert files(studio.root) == before


def test_each_line_for_people_has_state_check_and_remedy(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ERRORS", {"float32": 0.0})
    lines = inside("doctor", cwd=studio.root)
    assert lines.code == 1
    assert lines.stderr == "wanpipe: error: 1 check found a problem; see the lines above\n"
    text = " ".join(lines.paths)
    assert "problem compute relative error of a matrix product: float32" in text
    assert "-> unset MLX_ENABLE_TF32, and update the driver and MLX" in text
    assert "ok ffmpeg" in text


def test_a_folder_without_a_cache_is_no_problem_and_gets_none(tmp_path: Path) -> None:
    found = examine(Place(tmp_path, tmp_path))
    assert found["cache"]["text"] == "no cache at cache yet"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_ffmpeg_is_a_problem_and_the_other_checks_go_on(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    found = examine(studio, code=1)
    assert found["ffmpeg"]["state"] == "problem"
    assert "no ffmpeg at" in found["ffmpeg"]["text"]
    assert found["cache"]["state"] == "ok"


def test_an_ffmpeg_without_an_encoder_is_a_warning(
    studio: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho 'ffmpeg version 1.2'\necho ' V....D libx264 x'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    found = examine(studio)["ffmpeg"]
    assert found["state"] == "warning"
    assert found["text"].startswith("ffmpeg 1.2 at ")
    assert "no .webm, .gif can be written" in found["remedy"]


@pytest.mark.parametrize("product", [np.nan, 0.0, 1.001])
def test_a_wrong_product_is_a_problem(
    product: float, studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    right = mx.array.__matmul__
    monkeypatch.setattr(mx.array, "__matmul__", lambda one, other: product * right(one, other))
    assert examine(studio, code=1)["compute"]["state"] == "problem"


def test_a_disk_without_locks_is_a_warning(studio: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_locks", lambda folder: False)
    found = examine(studio)["disk"]
    assert (found["state"], "without locks" in found["text"]) == ("warning", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    found = examine(Place(tmp_path, tmp_path), code=1)["disk"]
    assert found["remedy"] == "use --cache with a folder that can be written"


def test_a_damaged_entry_is_a_warning(studio: Place) -> None:
    record = next(studio.cache.glob("decode/*/zarr.json"))
    record.chmod(0o644)
    record.write_text("{}")
    found = examine(studio)["cache"]
    assert found["state"] == "warning"
    assert "1 damaged, 0 set aside" in found["text"]
    assert found["remedy"].startswith("run `wanpipe cache verify --repair`")


def test_a_remote_answers_or_is_a_problem(studio: Place, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    url = f"file://{tmp_path}/remote"
    assert examine(studio, "--remote", url)["remote"]["text"] == f"{url} answers"
    found = examine(studio, "--remote", "ftp://x", code=1)["remote"]
    assert found["state"] == "problem"


def test_no_credential_is_shown(studio: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WANPIPE_TOKEN", "HF_TOKEN", "MLX_OTHER", "SECRET"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("WANPIPE_REMOTE", "https://hush:hush@host.invalid/films?sig=hush")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hush@proxy.invalid")
    result = inside("doctor", cwd=studio.root)
    text = " ".join(result.paths) + result.stderr
    assert "hush" not in text
    assert "WANPIPE_REMOTE=https://host.invalid/films" in text
    assert "AWS_SECRET_ACCESS_KEY is set" in text
    assert "HTTPS_PROXY is set" in text


def test_a_check_that_fails_says_why(studio: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise WanpipeError("it broke\nin two lines")

    monkeypatch.setattr(doctor, "usage", fails)
    found = examine(studio, code=1)["cache"]
    assert (found["text"], found["remedy"]) == ("it broke", "run `wanpipe cache verify`")


def test_mlx_that_cannot_be_loaded_is_a_problem(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    found = examine(studio, code=1)
    assert found["device"]["remedy"].startswith("install MLX for this device: pip install")
    assert found["ffmpeg"]["state"] == "ok"
