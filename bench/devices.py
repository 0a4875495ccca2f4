"""Times the denoising steps of one video on one device and on several, and compares every bit.

    python -m bench.devices 1.3b --devices 2 [--steps 6] [--guide-scale 1] [--memory 4.5GB]

Writes a model of random weights as bench.run does. Then denoises with `wanpipe denoise`, each
number of devices in its own cache, and prints the median time of a step, without the first two,
and how the devices divide it. `expected_gb` is the plan's peak of each device.
"""

import statistics
import tempfile
from pathlib import Path

# isort: split
import mlx.core as mx
import numpy as np

from bench.models import MODELS, write_model
from bench.run import PROMPT, computed, timed
from bench.weights import Rows, parser
from wanpipe.store.entry import Entry, read_entry

WARM_UP = 2  # steps that are not timed


def chain(last: Path) -> list[Entry]:
    """Return the entries of all steps, the first one first."""
    steps = [read_entry(last)]
    while steps[0].parent:
        steps.insert(0, read_entry(last.parent / steps[0].parent))
    return steps


def main() -> None:
    """Write the model, denoise on one device and on several, and print how they compare."""
    options = parser(__doc__)
    options.add_argument("model", nargs="?", default="1.3b", choices=["1.3b", "14b"])
    options.add_argument("--devices", type=int, nargs="+", default=[2])
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--guide-scale", type=float, default=5.0)
    options.add_argument("--memory", help="As for wanpipe, where several devices compute.")
    options.add_argument("--hd", action="store_true", help="1280x720 instead of 832x480.")
    args = options.parse_args()
    sizes = MODELS[args.model]
    size = ("1280", "720") if args.hd else ("832", "480")
    words: list[str | Path] = ["--width", size[0], "--height", size[1]]
    if args.small:
        sizes = sizes.tiny()
        words = ["--width", "64", "--height", "64", "--num-frames", "5"]
    words += ["--steps", str(args.steps), "--guide-scale", str(args.guide_scale), "--seed", "1"]
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory() as where:
        model = Path(where) / "model"
        model.mkdir()
        write_model(model, sizes)
        mx.clear_cache()
        alone: list[Entry] = []
        seconds: dict[int, float] = {}
        for count in (1, *args.devices):
            cache = Path(where) / f"cache-{count}"
            text = timed(["encode-text", "--model", model, "--prompt", PROMPT], cache)[1]
            denoise = ["denoise", "--model", model, "--from", text, *words]
            if count > 1:
                denoise += ["--devices", str(count)]
                denoise += ["--memory", args.memory] if args.memory else []
            planned = timed([*denoise, "--dry-run"], cache)[0]
            [plan] = [one.fields for one in planned if one.fields["event"] == "forecast"]
            events, last, wall = timed(denoise, cache)
            steps = chain(Path(last))
            alone = alone or steps
            pairs = zip(steps, alone, strict=True)
            same = all(np.array_equal(a.read("latent"), b.read("latent")) for a, b in pairs)
            seconds[count] = statistics.median(computed(events, "denoise")[WARM_UP:])
            rows.print(
                f"{args.model}, {count} devices, guidance {args.guide_scale:g}",
                way=plan.get("way", ""),
                seconds=seconds[count],
                speedup=seconds[1] / seconds[count],
                same_keys=[one.key for one in steps] == [one.key for one in alone],
                same_bits=same,
                peak_gb=max(one.made.peak_bytes for one in steps) / 1e9,
                expected_gb=plan["peak_bytes"] / 1e9,
                wall=wall,
            )


if __name__ == "__main__":
    main()
