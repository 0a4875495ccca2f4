"""Spoilt files of every kind, through the command line: a right model, or one line and no trace.

The work is done by a process of its own, which may take 1 GB more than it has at the start.
"""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from tests.checkpoints import mutations
from tests.checkpoints.foreign import save, scaled, stored, write_comfy, write_diffusers
from tests.checkpoints.ggufs import write_pair
from tests.conftest import DATA, unpack
from wanpipe import app
from wanpipe.errors import WanpipeError
from wanpipe.pipeline.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SECONDS = 10  # of this process's time, for one file
TIMEOUT_SECONDS = 3600  # for one kind of file: only what hangs outside Python comes near
MEMORY = 1 << 30  # bytes
LORAS = DATA / "expected" / "wan21-t2v" / "lora_files"


@dataclass
class Outcome:
    """How many files came to what; what went wrong; peak growth in bytes; slowest in seconds
    of processor time."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    growth: int = 0
    slowest: float = 0.0


class Hang(BaseException):
    """A file that takes too long."""


def alarm(number: int, frame: object) -> None:
    raise Hang


def peak() -> int:
    """Largest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def listing(root: Path) -> dict[str, int]:
    """Every file below `root`, with its size."""
    return {str(path.relative_to(root)): path.lstat().st_size for path in root.rglob("*")}


def linked(source: Path, target: Path) -> Path:
    """Make a tree of links, in which one file can be replaced."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return target


def replaced(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def command(*words: object) -> tuple[int, str]:
    """Run wanpipe in this process: exit code and stderr."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            app.main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def convert(checkpoint: Path, target: Path) -> str:
    """Convert, and check what that left."""
    places = ("--output-dir", target, "--cache", target.parent / "cache")
    asked = ("--quiet", "--dtype", "float32", "--checkpoint-dir", checkpoint, *places)
    code, stderr = command("convert", *asked)
    if code == 0:
        check_model(checkpoint, target)
        return "right"
    assert code in (1, 2), (code, stderr)
    assert stderr.count("\n") == 1 and stderr.startswith("wanpipe: error: "), stderr
    assert not (target / "config.json").exists(), "an error, and yet a model"
    assert not list(target.glob("*.part")), "half a file"
    return "refused"


def check_model(checkpoint: Path, target: Path) -> None:
    """What was converted can be read, and holds what the plain library reads from the source."""
    theirs = {}
    for path in checkpoint.glob("diffusion_pytorch_model*.safetensors"):
        theirs.update(load_file(path))
    ours = load_file(next(target.glob("*model.safetensors")))
    for name in ("blocks.0.self_attn.q.weight", "blocks.1.norm3.bias"):
        if theirs:
            np.testing.assert_array_equal(ours[name], theirs[name].astype(np.float32))
    for path in target.glob("*.safetensors"):
        load_file(path)


def tokenize(checkpoint: Path, target: Path) -> str:
    """Convert with a spoilt tokenizer, then use it."""
    if convert(checkpoint, target) == "refused":
        return "refused"
    try:
        [ids] = Tokenizer(target / "tokenizer.json").ids(["a cat, <pad> é 猫"], 16)
    except WanpipeError as error:
        assert "\n" not in str(error)
        return "refused"
    assert len(ids) <= 16
    return "right"


def apply_lora(path: Path, target: Path) -> str:
    """Read a LoRA, fit it to a model of two layers and add it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from wanpipe.models.config import DiTConfig
    from wanpipe.models.dit import DiT
    from wanpipe.weights.load import parameter_shapes
    from wanpipe.weights.lora import read_lora
    from wanpipe.weights.lora_match import match_lora
    from wanpipe.weights.merge import merge

    sizes = {"dim": 64, "ffn_dim": 128, "heads": 2, "layers": 2, "text_dim": 64}
    network = DiT(DiTConfig(in_dim=16, out_dim=16, **sizes))
    before = parameter_shapes(network)
    try:
        merge(network, [(match_lora(read_lora(path), before), 0.5)])
    except WanpipeError as error:
        assert len(str(error).splitlines()) == 1, error
        return "refused"
    assert parameter_shapes(network) == before
    for _, value in tree_flatten(network.parameters()):
        assert mx.isfinite(value).all().item() or value.dtype != mx.float32
    return "right"


def as_json(dice: random.Random, data: bytes) -> bytes:
    return mutations.odd_json(dice, data.decode())


Mutation = Callable[[random.Random, bytes], bytes]
Target = Callable[[Path, Path], str]


@dataclass(frozen=True)
class Case:
    """One kind of file: where it is, how it is spoilt, what is then done with it, how often."""

    source: str
    file: str
    mutation: Mutation
    target: Target
    times: int


CASES = (
    Case("wan21-t2v", "diffusion_pytorch_model.safetensors", mutations.safetensors, convert, 60),
    Case("comfy", "diffusion_models/wan.safetensors", mutations.safetensors, convert, 40),
    Case(
        "diffusers", "vae/diffusion_pytorch_model.safetensors", mutations.safetensors, convert, 25
    ),
    Case("wan21-t2v", "models_t5_umt5-xxl-enc-bf16.pth", mutations.torch_zip, convert, 60),
    Case("wan21-t2v", "Wan2.1_VAE.pth", mutations.torch_zip, convert, 30),
    Case("gguf", "wan-Q8_0.gguf", mutations.gguf, convert, 60),
    Case("gguf", "umt5-Q8_0.gguf", mutations.gguf, convert, 40),
    Case("wan21-t2v", "config.json", as_json, convert, 45),
    Case("diffusers", "transformer/config.json", as_json, convert, 25),
    Case("two-experts", "model_index.json", as_json, convert, 30),
    Case("wan21-i2v", "diffusion_pytorch_model.safetensors.index.json", as_json, convert, 30),
    Case("wan21-t2v", "google/umt5-xxl/tokenizer.json", as_json, tokenize, 45),
    Case("loras", "a_lightning_down_up_alpha.safetensors", mutations.safetensors, apply_lora, 40),
    Case("loras", "c_lightx2v_diff.safetensors", mutations.safetensors, apply_lora, 40),
    Case("loras", "e_diffusers_transformer.safetensors", mutations.safetensors, apply_lora, 25),
)


def fuzz(source: Path, case: Case, times: int) -> Outcome:
    """Spoil a file of the folder `source` once per seed, in a folder that must stay clean."""
    outcome, data = Outcome(), (source / case.file).read_bytes()
    contain()
    before = peak()
    for seed in range(times):
        work = source.parent / f"{case.file.replace('/', '-')}-{seed}"
        checkpoint = linked(source, work / "checkpoint")
        spoilt = checkpoint / case.file
        replaced(spoilt, case.mutation(random.Random(seed), data))
        left = listing(checkpoint)
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            lora = case.target is apply_lora
            outcome.counts[case.target(spoilt if lora else checkpoint, work / "model")] += 1
            assert listing(checkpoint) == left, "the checkpoint has changed"
            assert {path.name for path in work.iterdir()} <= {"checkpoint", "model", "cache"}
        except BaseException as error:  # whatever happens is to be told; Rust panics are no less
            outcome.wrong.append(f"seed {seed}: {type(error).__name__}: {error}"[:500])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        outcome.slowest = max(outcome.slowest, time.process_time() - started)
    outcome.growth = peak() - before
    return outcome


def contain() -> None:
    """Let this process take little more memory, be woken from a hang, and not wait for the disk."""
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, alarm)
    os.fsync = lambda descriptor: None


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def sources(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in every layout, one with scaled 8-bit weights, and LoRAs."""
    root = tmp_path_factory.mktemp("sources")
    for family in ("wan21-t2v", "wan21-i2v"):
        linked(checkpoints / family, root / family)
    write_diffusers(checkpoints / "wan21-t2v", root / "diffusers")
    write_diffusers(checkpoints / "wan22-t2v-a14b", root / "two-experts")
    write_comfy(checkpoints / "wan21-t2v", root / "comfy")
    write_pair(checkpoints / "wan21-t2v", root, Kind.Q8_0)  # into root / "gguf"
    path = root / "comfy" / "diffusion_models" / "wan.safetensors"
    save(path, scaled(stored((path,)), lambda name: name.endswith("ffn.0.weight"))[0])
    for packed in LORAS.glob("*.xz"):
        unpack(packed, root / "loras" / packed.name)
    return root


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.source}-{Path(case.file).name}")
def test_a_spoilt_file_is_refused_in_one_line_or_read_right(
    sources: Path,
    worker: ProcessPoolExecutor,
    case: Case,
    fuzz_factor: int,
    record_property: Callable[[str, object], None],
) -> None:
    times = case.times * fuzz_factor
    job = worker.submit(fuzz, sources / case.source, case, times)
    outcome = job.result(timeout=TIMEOUT_SECONDS)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert sum(outcome.counts.values()) == times
    assert outcome.counts["refused"] > times // 4, "the mutations do no harm"
    assert outcome.slowest < SECONDS
    assert outcome.growth < MEMORY
    record_property("cases", times)
    record_property("refused", outcome.counts["refused"])


def test_there_are_mutations_enough() -> None:
    assert sum(case.times for case in CASES) >= 500
