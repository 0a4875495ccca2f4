"""Compares full-width transformers in bfloat16, ours and PyTorch's, with float32.

    python -m bench.parity [NAME...] [--small] [--python PROGRAM]

At each width, with random weights: the residual stream after one block, and the velocity of a
four-layer model. The reference is ours in float32 with TF32 off, from the same rounded weights;
PyTorch in float32 checks the reference. diffusers runs in its own process, with the interpreter of
--python. Also checks that two runs give the same bits. On a CPU, ours is always float32.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from msgspec import UNSET

from bench.dit import small
from bench.sizes import DITS, with_layers
from bench.weights import Random, Rows, parser, relative
from wanpipe.backend.device import compute_dtype, mlx_dtype
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.dit import Condition, DiT, Stream
from wanpipe.models.geometry import Triple
from wanpipe.models.layers import grid
from wanpipe.runtime.documents import convert, to_builtins
from wanpipe.weights.load import load_network

DEFAULT = ("1.3b", "14b")
LAYERS, LATENT, SMALL = 4, (21, 30, 60), (3, 8, 12)
STEP = 500.0  # timestep
WHATS = ("block", "model")


def prepare(folder: Path, config: DiTConfig, latent: Triple) -> None:
    """Write the weights and the inputs for both implementations."""
    Random(DiT(config), rules.RULES).write(folder / "model.safetensors")
    tokens = np.prod(grid(latent, config.patch))
    generator = np.random.default_rng(0)
    shapes = {
        "latent": (config.in_dim, *latent),
        "text": (config.text_len, config.text_dim),
        "stream": (1, tokens, config.dim),  # input of the first block
        "time": (1, 6, config.dim),
        "words": (1, config.text_len, config.dim),  # the embedded text
    }
    if config.vace_in_dim is not UNSET:
        shapes["context"] = (config.vace_in_dim, *latent)
    for name, shape in shapes.items():
        np.save(folder / f"{name}.npy", generator.standard_normal(shape, np.float32))
    fields = {**to_builtins(config), "inputs": list(shapes)}
    (folder / "config.json").write_text(json.dumps(fields))


def run(folder: Path, dtype: str) -> None:
    """Run the model of `folder` twice in `dtype` and write `ours-DTYPE-WHAT.npy`."""
    fields = json.loads((folder / "config.json").read_text())
    inputs = {name: mx.array(np.load(folder / f"{name}.npy")) for name in fields.pop("inputs")}
    config = convert(fields, DiTConfig)
    kind = mlx_dtype(dtype)
    network = load_network(DiT(config), folder / "model.safetensors", kind)
    block = network.blocks[0]
    table = rope.tables(grid(inputs["latent"].shape[1:], config.patch), config.dim // config.heads)

    def both() -> list[np.ndarray]:
        kept = block.cross_attn.kv(Condition(inputs["words"][0].astype(kind)))
        advanced = Stream(inputs["stream"])
        block(advanced, inputs["time"], table, kept)
        still = mx.zeros((1, 1, config.dim))
        advanced.add_norm(
            still, still, plus_one=True, eps=config.eps, dtype=kind
        )  # applies the pending addition
        stream = advanced.x[0]
        mx.eval(stream)
        condition = network.condition(inputs["text"])
        [velocity] = network(inputs["latent"], [STEP], [condition], context=inputs.get("context"))
        return [np.array(stream), np.array(velocity)]

    first, second = both(), both()
    same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    for what, array in zip(WHATS, first, strict=True):
        np.save(folder / f"ours-{dtype}-{what}.npy", array)
    print(json.dumps({"same_bits": same}))


def compare(name: str, folder: Path, dtype: str, rows: Rows) -> None:
    """Print the errors of the stream, of the block's update to it, and of the velocity."""
    before = np.load(folder / "stream.npy")[0]
    for what in WHATS:
        reference = np.load(folder / f"ours-float32-{what}.npy")
        others = {
            "PyTorch, float32": folder / f"torch-float32-{what}.npy",
            f"ours, {dtype}": folder / f"ours-{dtype}-{what}.npy",
            "PyTorch, bfloat16": folder / f"torch-bfloat16-{what}.npy",
        }
        for label, path in others.items():
            if path.exists() and label != "ours, float32":
                array = np.load(path)
                more = {}
                if what == "block":
                    more = {"added": relative(array - before, reference - before)}
                subject = f"{name}, {what}, {label}"
                rows.print(subject, relative_l2=relative(array, reference), **more)


def bench(name: str, program: str, is_small: bool, rows: Rows) -> None:
    """Compare the implementations at one width."""
    config, latent = DITS[name][0], SMALL if is_small else LATENT
    config = small(config) if is_small else config
    config = with_layers(config, LAYERS)
    dtype = compute_dtype("bfloat16")
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        prepare(folder, config, latent)
        mx.clear_cache()  # the rest runs in other processes
        ours = [sys.executable, "-m", "bench.parity", "--run", where, "--dtype"]
        exact = {**os.environ, "MLX_ENABLE_TF32": "0"}
        for one in dict.fromkeys(("float32", dtype)):
            environment = exact if one == "float32" else dict(os.environ)
            done = subprocess.run(
                [*ours, one], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            rows.print(f"{name}, ours, {one}", **json.loads(done.stdout.splitlines()[-1]))
        theirs = [program, "-m", "bench.torch_side", "compare", where]
        done = subprocess.run([*theirs, *(["--cpu"] if is_small else [])], capture_output=True)
        if done.returncode:
            reason = (done.stderr.decode().strip() or "no reason given").splitlines()[-1]
            rows.print(f"{name}, PyTorch", skipped=reason)
        compare(name, folder, dtype, rows)


def main() -> None:
    """Compare at the named widths, by default those of 1.3B and 14B."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DITS))
    options.add_argument(
        "--python", default=sys.executable, help="An interpreter with torch and diffusers."
    )
    options.add_argument("--run", type=Path, help="Internal: a prepared folder.")
    options.add_argument("--dtype", default="float32", help="Internal, with --run.")
    args = options.parse_args()
    if args.run:
        run(args.run, args.dtype)
        return
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    for name in args.names or DEFAULT:
        if DITS[name][0].clip_dim is not None:
            options.error(f"{name} has image tokens; choose a network without")
        bench(name, args.python, args.small, rows)


if __name__ == "__main__":
    main()
