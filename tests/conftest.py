"""Golden values and tiny checkpoints, unpacked from tests/data once per session."""

import json
import lzma
import shutil
import signal
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load

pytest_plugins = ["tests.workshop", "tests.gallery_site"]
# A shell that starts the tests in the background makes them and their children ignore both signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
DATA = Path(__file__).parent / "data"


def unpack(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".xz":
        target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
    else:
        shutil.copyfile(source, target)


def golden(topic: str) -> dict[str, np.ndarray]:
    """Arrays of tests/data/expected/<topic>, for example golden("wan21-t2v/e2e")["noise"]."""
    return load(lzma.decompress((DATA / "expected" / f"{topic}.safetensors.xz").read_bytes()))


def settings(topic: str) -> dict[str, Any]:
    """What the reference ran with to make golden(topic)."""
    return json.loads((DATA / "expected" / f"{topic}.json").read_text(encoding="utf-8"))


def relative_error(ours: Any, reference: Any) -> float:
    """Norm of the difference over norm of the reference, in float64; shapes must agree."""
    ours, reference = np.asarray(ours, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-factor", type=int, default=1, metavar="N", help="Run N times as many fuzz cases."
    )
    parser.addoption(
        "--remote", metavar="URL", help="Run the tests of the remote in a folder of this bucket."
    )


@pytest.fixture
def fuzz_factor(request: pytest.FixtureRequest) -> int:
    """How many times as many cases a fuzz test runs."""
    factor: int = request.config.getoption("--fuzz-factor")
    return factor


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let MLX's random numbers be the same in any order of tests; its own seed is the time."""
    mx.random.seed(7)


def belongs(name: str, family: str) -> bool:
    """Whether a file of tests/data/common is one of a family's checkpoint."""
    if name.startswith("models_clip"):
        return family in ("wan21-i2v", "wan21-flf2v")
    return not (name.startswith("Wan2.1_VAE") and family == "wan22-ti2v-5b")


def unpack_checkpoints(root: Path) -> None:
    """Unpack every tiny checkpoint in the official layout, whole."""
    for family in DATA.glob("wan2*"):
        for base in (family, DATA / "common"):
            for source in base.rglob("*"):
                if source.is_file() and (base == family or belongs(source.name, family.name)):
                    unpack(source, root / family.name / source.relative_to(base))
        high, low = (root / family.name / f"{name}_noise_model" for name in ("high", "low"))
        for source in high.glob("*.json"):  # the two experts' are equal, so they are kept once
            shutil.copyfile(source, low / source.name)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny checkpoint in the official layout, whole. Read-only by agreement:
    copy before changing.
    """
    root = tmp_path_factory.mktemp("checkpoints")
    unpack_checkpoints(root)
    return root
