"""Records what a version of wanpipe writes: the pinned keys, and a small cache.

    python tests/data/record.py TREE

TREE is a source tree of version 0.1.0 (commit bb5f628); its commands are run as processes. Writes
tests/data/golden/*.json and tests/data/cache-0.1.0.tar.xz.

The keys are those of 0.1.0 with one rule applied that came later: under guidance 1 a step does not
use the negative prompt, so its `text` is the key of the text's material without `negative`. Also,
models for text-to-video have a vae_encoder, which 0.1.0 left out; quantized copies name its hash.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import xxhash

HERE = Path(__file__).parent
LEFT_OUT = {".locks", ".tmp", ".hashes.json"}  # no results
sys.path.insert(0, str(HERE.parent.parent))

from tests.conftest import unpack_checkpoints  # noqa: E402
from tests.golden_runs import (  # noqa: E402
    CACHE_MODELS,
    CACHE_RUNS,
    RUNS,
    Record,
    Run,
    follow,
    furnish,
    pinned,
    take,
)


def runner(tree: Path, root: Path) -> Run:
    """Give what runs a command of the version in `tree`, in the folder `root`."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}

    def run(words: list[str]) -> list[str]:
        process = subprocess.run(
            [sys.executable, "-m", "wanpipe", *words],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, f"{words}: {process.stderr}"
        return process.stdout.split()

    return run


def key_of(material: Any) -> str:
    """Compute the key of a material, here once more and not by the code that is recorded."""
    text = json.dumps(material, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))


def without_negative(records: dict[str, Record]) -> dict[str, Record]:
    """Apply the rule of guidance 1 to the steps; whatever follows from one gets its new key."""
    shorter: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for record in records.values():
        if record["stage"] == "encode-text":
            material = {n: v for n, v in record["material"].items() if n != "negative"}
            shorter[record["key"]] = key_of(material)
    changed = {}
    for name, record in records.items():
        material = dict(record["material"])
        if record["stage"] == "denoise":
            if material["guide_scale"] == 1.0:
                material["text"] = shorter[material["text"]]
            if "parent" in material:
                material["parent"] = renamed.get(material["parent"], material["parent"])
        key = key_of(material)
        renamed[record["key"]] = key
        changed[name] = {**record, "material": material, "key": key}
    return changed


def write_golden(path: Path, records: dict[str, Record]) -> None:
    """Write pinned entries as JSON, a line for each field of a material."""
    entries = []
    for name, record in records.items():
        shown = pinned(record)
        parts = []
        for part, value in shown.items():
            text = json.dumps(value, ensure_ascii=False)
            if isinstance(value, dict):
                rows = (f"   {json.dumps(n)}: {json.dumps(v)}" for n, v in value.items())
                text = "{\n" + ",\n".join(rows) + "\n  }"
            parts.append(f"  {json.dumps(part)}: {text}")
        entries.append(f" {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n }")
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


def write_cache(checkpoints: Path, tree: Path, root: Path) -> None:
    """Make the small cache, and keep it beside the key of every result; the models stay out."""
    root.mkdir()
    furnish(root)
    run, places = runner(tree, root), {}
    for name, kind in CACHE_MODELS.items():
        words = ("--checkpoint-dir", checkpoints / kind, "--output-dir", root / "models" / name)
        places[name] = run(["convert", *map(str, words), "--dtype", "float32"])[-1]
    keys = {name: record["key"] for name, record in follow(CACHE_RUNS, places, root, run).items()}
    text = json.dumps(keys, indent=1)
    (HERE / "golden" / "cache-0.1.0.json").write_text(f"{text}\n", encoding="utf-8")
    cache = root / "cache"
    with tarfile.open(HERE / "cache-0.1.0.tar.xz", "w:xz", preset=9) as packed:
        for path in sorted(cache.rglob("*")):
            inside = path.relative_to(cache)
            if path.is_file() and inside.parts[0] not in LEFT_OUT:
                packed.add(path, Path("cache") / inside)


def main(tree: Path) -> None:
    """Record everything."""
    with tempfile.TemporaryDirectory(prefix="wanpipe-") as folder:
        checkpoints = Path(folder) / "checkpoints"
        unpack_checkpoints(checkpoints)
        (HERE / "golden").mkdir(exist_ok=True)
        for kind in RUNS:
            root = Path(folder) / kind
            root.mkdir()
            records = take(kind, checkpoints / kind, root, runner(tree, root))
            write_golden(HERE / "golden" / f"{kind}.json", without_negative(records))
        write_cache(checkpoints, tree, Path(folder) / "cache-0.1.0")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
