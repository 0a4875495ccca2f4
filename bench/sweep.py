"""Times `wanpipe sweep` on one device and on several, with random weights.

    python -m bench.sweep --devices 2 [--videos 8] [--steps 8] [--small]
    python -m bench.sweep --devices 2 --demo

Makes videos of Wan2.1 1.3B (832x480, 81 frames, random weights of full size, see bench.run), of
two prompts. A sweep on one device and one on several each have an empty cache, and their digests
are compared. The times are those of the whole command: start of the workers, loading, videos. A
short sweep before them compiles the GPU kernels. Goal: 1.9 times as fast on two devices.

`--demo` takes the demo model instead. On a CPU, workers share the cores with one thread each.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from bench.models import MODELS, write_model
from bench.run import timed
from bench.timeline import Event
from bench.weights import Rows, parser
from stages import convert
from wanpipe import demo
from wanpipe.store import Store
from wanpipe.store.entry import read_entry
from wanpipe.sweeps.local import THREADS

GOAL = 1.9  # for two devices
PROMPTS = (
    "a red circle moves right on a white background",
    "a blue star moves left on a black background",
)
FULL = {"width": 832, "height": 480, "num-frames": 81}
TINY = {"width": 64, "height": 64, "num-frames": 5}


def write_sweep(
    path: Path, model: Path, size: dict[str, int], steps: int, videos: int, prompts: Sequence[str]
) -> Path:
    """Write a sweep file of so many videos, with the same number of seeds for each prompt."""
    seeds = list(range(1, videos // len(prompts) + 1))
    output = "{prompt}-{seed}.png"  # folders of frames, which need no ffmpeg
    rows = {"model": str(model), "steps": steps, **size, "output": output}
    lines = [f"{name} = {json.dumps(value)}" for name, value in rows.items()]
    lines += ["[axes]", f"prompt = {json.dumps(list(prompts))}", f"seed = {json.dumps(seeds)}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sweep(path: Path, workers: int, cache: Path) -> tuple[list[Event], float]:
    """Carry out a sweep file on so many workers; return its events, and its time."""
    words = ["sweep", path, "--workers", str(workers)]
    events, _, wall = timed(words, cache)
    return events, wall


def digests(cache: Path) -> dict[str, Any]:
    """Return the digests of all entries of a cache."""
    entries = [read_entry(path.parent) for path in cache.glob("[a-z]*/*/zarr.json")]
    return {entry.key: dict(entry.record.digest) for entry in entries}


def print_sweep(events: list[Event], wall: float, workers: int, videos: int, rows: Rows) -> None:
    """Print what a sweep took, and when it worked."""
    done = [event for event in events if event.fields["event"] == "done"]
    started = [event for event in events if event.fields["event"] == "started"]
    busy: dict[str, float] = {}
    for event in done:
        worker = event.fields["worker"]
        busy[worker] = busy.get(worker, 0.0) + event.fields["seconds"]
    begun = {event.fields["worker"]: event.at for event in reversed(started)}
    rows.print(
        f"{workers} devices",
        videos=videos,
        wall=wall,
        videos_an_hour=3600 * videos / wall,
        first_start=min(begun.values()),
        last_start=max(begun.values()),
        busy=sum(busy.values()) / len(busy),
        end=wall - done[-1].at,
        **{
            stage: sum(e.fields["seconds"] for e in done if e.fields["stage"] == stage)
            for stage in ("encode-text", "denoise", "decode")
        },
    )


def make_model(folder: Path, tiny: bool, as_demo: bool) -> Path:
    """Write a model, and return its directory."""
    model = folder / "model"
    if as_demo:
        with demo.checkpoint("t2v") as source:
            params = convert.Params(checkpoint_dir=source, output_dir=model)
            return convert.run(params, Store(folder / "converted"))
    sizes = MODELS["1.3b"]
    if tiny:
        sizes = sizes.tiny()
    model.mkdir()
    write_model(model, sizes)
    mx.clear_cache()
    return model


def main() -> None:
    """Write the model and the sweep, carry it out on one device and on several, and compare."""
    options = parser(__doc__)
    options.add_argument("--devices", type=int, default=2, help="Workers, one a device.")
    options.add_argument("--videos", type=int, default=8)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--rounds", type=int, default=1, help="Sweeps on each.")
    options.add_argument("--demo", action="store_true", help="Take the demo model.")
    options.add_argument("--folder", type=Path, help="Directory for all files.")
    args = options.parse_args()
    if not mx.cuda.is_available():
        os.environ.update(dict.fromkeys(THREADS, "1"))  # so that no worker takes all cores
    size = {"width": 96, "height": 96, "num-frames": 17} if args.demo else FULL
    size = TINY if args.small else size
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as where:
        folder = Path(where)
        model = make_model(folder, args.small, args.demo)
        warm = folder / "warm"
        warm.mkdir()
        short = write_sweep(warm / "sweep.toml", model, size, 2, 1, PROMPTS[:1])
        sweep(short, 1, warm / "cache")
        walls: dict[int, list[float]] = {}
        found: list[dict[str, Any]] = []
        for number in range(args.rounds):
            for workers in sorted({1, args.devices}):
                place = folder / f"{number}-{workers}"
                place.mkdir()
                path = write_sweep(
                    place / "sweep.toml", model, size, args.steps, args.videos, PROMPTS
                )
                events, wall = sweep(path, workers, place / "cache")
                print_sweep(events, wall, workers, args.videos, rows)
                walls.setdefault(workers, []).append(wall)
                found.append(digests(place / "cache"))
        ratio = min(walls[1]) / min(walls[args.devices])
        same = all(one == found[0] for one in found)
        rows.print("ratio", devices=args.devices, ratio=ratio, goal=GOAL, same_bits=same)


if __name__ == "__main__":
    main()
