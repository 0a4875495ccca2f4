"""Which kernels a denoising step runs, and where the GPU waits for the host between them.

    python -m bench.trace [NAME] [--layers N]

NAME is one of DITS in bench/sizes.py, `1.3b` without one. The profiler of PyTorch (the one that
bench/torch_side.py compares with) sees every kernel of the process, MLX's too. Needs CUDA.
"""

import json
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from bench.dit import chosen_size, stepper
from bench.sizes import DITS
from bench.weights import Random, Rows, parser
from wanpipe.backend.device import is_cuda
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models.dit import DiT

KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
MOST = 25  # kernels that are told
LETTERS = 90  # of a kernel's name
WAITS = (2, 5, 10, 30, 100)  # microseconds that part waits into classes
LONG = 30  # microseconds: of a wait that is told by what came after it


class Work(NamedTuple):
    """What the GPU did: a kernel or a copy, microseconds."""

    name: str
    start: float
    took: float


def traced(step: Callable[[], None]) -> list[Work]:
    """Run a step under the profiler and return what the GPU did, in the order of time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    for _ in range(2):
        step()
    mx.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        mx.synchronize()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    works = [
        Work(event["name"][:LETTERS], event["ts"], event["dur"])
        for event in events
        if event.get("cat") in KINDS
    ]
    return sorted(works, key=lambda work: work.start)


def waits(works: Sequence[Work]) -> list[tuple[float, str]]:
    """Microseconds in which nothing ran, each with what ran next."""
    found, end = [], works[0].start
    for work in works:
        if work.start > end:
            found.append((work.start - end, work.name))
        end = max(end, work.start + work.took)
    return found


def grouped(pairs: Sequence[tuple[str, float]]) -> list[tuple[str, int, float]]:
    """Name, count and sum of microseconds, the largest sum first."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, took in pairs:
        found[name].append(took)
    rows = [(name, len(took), sum(took)) for name, took in found.items()]
    return sorted(rows, key=lambda row: row[2], reverse=True)


def tell(works: Sequence[Work], rows: Rows) -> None:
    """Print the step, its kernels and its waits."""
    end = max(work.start + work.took for work in works)
    idle = waits(works)
    rows.tell(
        "step",
        ms=(end - works[0].start) / 1e3,
        busy_ms=sum(work.took for work in works) / 1e3,
        waiting_ms=sum(took for took, _ in idle) / 1e3,
    )
    for name, count, total in grouped([(work.name, work.took) for work in works])[:MOST]:
        rows.tell(name, times=count, ms=total / 1e3, each_us=total / count)
    for low, high in zip((0, *WAITS), (*WAITS, float("inf")), strict=True):
        chosen = [took for took, _ in idle if low <= took < high]
        rows.tell(f"waits of {low} to {high} us", times=len(chosen), ms=sum(chosen) / 1e3)
    for name, count, total in grouped([(after, took) for took, after in idle if took >= LONG]):
        rows.tell(f"waits before {name}", times=count, ms=total / 1e3)


def main() -> None:
    """Trace one network."""
    options = parser(__doc__)
    options.add_argument("name", nargs="?", default="1.3b", choices=DITS)
    options.add_argument("--layers", type=int, help="fewer blocks than the network has")
    asked: Namespace = options.parse_args()
    if not is_cuda():
        raise SystemExit("a trace needs CUDA, and PyTorch for its profiler")
    mx.random.seed(0)
    rows = Rows(asked.json)
    rows.start()
    config, latent = chosen_size(asked.name, asked)
    network = Random(DiT(config), rules.ROWS).fill(DiT(config), mx.bfloat16)
    tell(traced(stepper(network, latent)), rows)


if __name__ == "__main__":
    main()
