"""The wheel: what is in it, and that it works where nothing else of this repository is."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.workshop import SMALL
from wanpipe.media.video import read_video

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
EXTRA = "" if sys.platform == "darwin" else "[cpu]"
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it alone. Both come
    from a copy, so that nothing is left in the tree.
    """
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("stages", "tests", "wanpipe"):
        ignored = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copyfile(path, source / path.name)
    build = [sys.executable, "-m", "build", "--outdir", str(dist), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return dist


@pytest.fixture(scope="session")
def wheel(package: Path) -> Path:
    """The wheel."""
    return next(package.glob("*.whl"))


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an empty environment in which the wheel was installed with what it needs."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=True)
    pip = [str(root / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    requirement = f"wanpipe{EXTRA} @ {wheel.as_uri()}"
    subprocess.run([*pip, requirement], check=True, env=OUTSIDE, cwd=root)
    return root / "bin"


def test_the_wheel_holds_two_packages_and_its_metadata(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"wanpipe", "stages", metadata}


def test_the_source_distribution_holds_no_tests(package: Path) -> None:
    with tarfile.open(next(package.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    inside = {name.partition("/")[2].split("/")[0] for name in names}
    assert {"stages", "wanpipe", "README.md", "LICENSE", "CHANGELOG.md"} <= inside
    assert "tests" not in inside


def test_an_index_would_take_the_package(package: Path, wheel: Path) -> None:
    files = [str(path) for path in package.iterdir()]
    for command in (["twine", "check", "--strict", *files], ["check_wheel_contents", str(wheel)]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_type_checkers_read_the_types_of_both_packages(wheel: Path) -> None:
    assert {"stages/py.typed", "wanpipe/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [path for name in ("stages", "wanpipe") for path in (ROOT / name).rglob("*.py")]
    modules += (ROOT / "wanpipe/cache/gallery/pages").iterdir()
    assert [path for path in modules if path.relative_to(ROOT).as_posix() not in names] == []


@pytest.mark.long
def test_an_installed_wheel_makes_a_film_in_an_empty_folder(
    environment: Path, checkpoints: Path, tmp_path: Path
) -> None:
    words = ["run", "--checkpoint-dir", checkpoints / "wan21-t2v", "--prompt", "a cat", *SMALL]
    for program in ([environment / "wanpipe"], [environment / "python", "-m", "wanpipe"]):
        command = [str(word) for word in [*program, *words, "--output", "film.mp4"]]
        done = subprocess.run(command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "film.mp4\n"
    assert "cached" in done.stderr
    assert len(read_video(tmp_path / "film.mp4")[0]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "film.mp4"]


@pytest.mark.long
def test_an_installed_wheel_is_used_from_python(environment: Path, tmp_path: Path) -> None:
    code = "import wanpipe, stages; print(wanpipe.__file__, callable(wanpipe.denoise))"
    command = [str(environment / "python"), "-c", code]
    shown = subprocess.run(
        command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, check=True
    ).stdout.split()
    assert Path(shown[0]).is_relative_to(environment.parent)
    assert shown[1] == "True"


@pytest.mark.long
def test_another_package_named_stages_ahead_of_ours_is_named(
    environment: Path, tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("COMMANDS = {}\n")
    for ahead in ({"PYTHONPATH": str(tmp_path)}, {}):  # `-m` puts the folder one is in ahead too
        done = subprocess.run(
            [str(environment / "python"), "-m", "wanpipe", "--help"],
            cwd=tmp_path,
            env={**OUTSIDE, **ahead},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("wanpipe: error: another package named stages, at ")
        assert str(tmp_path / "stages") in done.stderr
        assert len(done.stderr.splitlines()) == 1
