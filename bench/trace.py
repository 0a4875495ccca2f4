"""Lists the kernels of a denoising step, and the gaps in which the GPU waits for the host.

    python -m bench.trace [NAME] [--layers N]

NAME is a key of DITS in bench/sizes.py, by default `1.3b`. PyTorch's profiler sees every kernel of
the process, including MLX's. Needs CUDA.
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
MOST = 25  # kernels in the output
LETTERS = 90  # length of a kernel's name
GAPS = (2, 5, 10, 30, 100)  # microseconds, the bounds of the classes of gaps
LONG = 30  # microseconds; longer gaps are listed by the kernel after them


class Work(NamedTuple):
    """A kernel or a copy on the GPU; times in microseconds."""

    name: str
    start: float
    took: float


def traced(step: Callable[[], None]) -> list[Work]:
    """Profile one step and return the GPU's work in order of time."""
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


def gaps(works: Sequence[Work]) -> list[tuple[float, str]]:
    """Return the idle gaps in microseconds, each with the name of the next kernel."""
    found, end = [], works[0].start
    for work in works:
        if work.start > end:
            found.append((work.start - end, work.name))
        end = max(end, work.start + work.took)
    return found


def grouped(pairs: Sequence[tuple[str, float]]) -> list[tuple[str, int, float]]:
    """Return name, count and total microseconds, the largest total first."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, took in pairs:
        found[name].append(took)
    rows = [(name, len(took), sum(took)) for name, took in found.items()]
    return sorted(rows, key=lambda row: row[2], reverse=True)


def print_trace(works: Sequence[Work], rows: Rows) -> None:
    """Print the step, its kernels and its gaps."""
    end = max(work.start + work.took for work in works)
    idle = gaps(works)
    rows.print(
        "step",
        ms=(end - works[0].start) / 1e3,
        busy_ms=sum(work.took for work in works) / 1e3,
        idle_ms=sum(took for took, _ in idle) / 1e3,
    )
    for name, count, total in grouped([(work.name, work.took) for work in works])[:MOST]:
        rows.print(name, times=count, ms=total / 1e3, each_us=total / count)
    for low, high in zip((0, *GAPS), (*GAPS, float("inf")), strict=True):
        chosen = [took for took, _ in idle if low <= took < high]
        rows.print(f"gaps of {low} to {high} us", times=len(chosen), ms=sum(chosen) / 1e3)
    for name, count, total in grouped([(after, took) for took, after in idle if took >= LONG]):
        rows.print(f"gaps before {name}", times=count, ms=total / 1e3)


def main() -> None:
    """Trace one network."""
    options = parser(__doc__)
    options.add_argument("name", nargs="?", default="1.3b", choices=DITS)
    options.add_argument("--layers", type=int, help="Number of blocks, if not all.")
    args: Namespace = options.parse_args()
    if not is_cuda():
        raise SystemExit("bench.trace needs CUDA, and PyTorch for its profiler")
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    config, latent = chosen_size(args.name, args)
    network = Random(DiT(config), rules.RULES).fill(DiT(config), mx.bfloat16)
    print_trace(traced(stepper(network, latent)), rows)


if __name__ == "__main__":
    main()
