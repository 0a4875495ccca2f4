"""show: what an entry, a converted model or a film is, and where it comes from.

Reads: an entry of the cache, a model directory, or a film that decode wrote.
Writes: nothing; a description goes to stdout.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from wanpipe import cli
from wanpipe.errors import UsageError
from wanpipe.model import Model, open_model
from wanpipe.report import clock
from wanpipe.store import Entry, Store

Rows = Iterator[tuple[str, Any]]


def run(reference: str, store: Store) -> dict[str, Any]:
    """Describe what `reference` means: a film, a model directory, or an entry by path, key prefix
    or name.
    """
    path = Path(reference)
    if path.is_dir() and (path / "config.json").is_file():
        return dict(describe_model(open_model(path)))
    if path.is_file() or (path.is_dir() and any(path.glob("*.png"))):
        return dict(describe_film(path))
    entry = store.resolve(reference)
    if entry.stage == "convert":
        return dict(describe_model(open_model(entry.path)))
    return dict(describe_entry(entry, Store(entry.path.parent.parent, store.report)))


def describe_model(model: Model) -> Rows:
    """Tell a model's variant, dtype, quantisation, defaults, and parameters and bytes of every
    component.
    """
    config = model.config
    yield "model", str(model.directory)
    yield "variant", config.variant
    yield "task", config.task
    yield "dtype", config.dtype
    quantized = config.quantization
    yield (
        "quantization",
        f"{quantized.bits} bits in groups of {quantized.group_size}" if quantized else "none",
    )
    for name, component in config.components.items():
        count = f"{amount(component.parameters, '')} parameters, " if component.parameters else ""
        yield f"component {name}", f"{count}{amount(component.bytes, 'B')}, {component.hash[:8]}"
    yield "on disk", amount(sum(one.bytes for one in config.components.values()), "B")
    for name, value in config.defaults.to_json().items():
        if value is not None:
            yield f"default {name}", value


def describe_film(path: Path) -> Rows:
    """Tell the lineage that a film carries. Raises UsageError where it carries none."""
    from wanpipe import media

    comment = media.read_metadata(path).get("comment", "")
    try:
        lineage = json.loads(comment)["wanpipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} says nothing of how it was made; give a film that wanpipe wrote"
        ) from error
    yield "film", str(path)
    yield from lineage.items()


def describe_entry(entry: Entry, store: Store) -> Rows:
    """Tell what an entry is, what it was made from back to prompt and model, its arrays and how it
    was made.
    """
    made = entry.made
    yield "entry", str(entry.path)
    yield "stage", entry.stage
    if "step" in entry.record:
        yield "step", f"{entry.record['step'] + 1} of {made['settings']['steps']}"
    for name in ("prompt", "negative_prompt", "image", "fit", "seed", "settings"):
        if made.get(name) is not None:
            yield name, made[name]
    for name, value in entry.material.items():
        if name not in {"schema", "stage", "algorithm", "prompt", "negative"} and value is not None:
            yield f"material {name}", value
    for name, statistics in made["statistics"].items():
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in statistics.items())
        yield f"array {name}", f"{entry.shape(name)}, {numbers}"
    size = sum(file.stat().st_size for file in entry.path.rglob("*") if file.is_file())
    yield "on disk", amount(size, "B")
    yield (
        "made",
        f"{made['time']} in {clock(made['seconds'])} ({made['seconds']} s) on {made['device']}",
    )
    yield (
        "made with",
        f"wanpipe {made['wanpipe']}, mlx {made['mlx']}, peak {amount(made['peak_bytes'], 'B')}",
    )
    yield "model", made.get("model")
    for role, key in entry.inputs.items():
        stage = {"step": "denoise"}.get(role, f"encode-{role}")
        there = store.find(stage, key)
        words = f": {there.made['prompt']}" if there and "prompt" in there.made else ""
        yield f"from {role}", f"{stage}/{key}{words if there else ' (gone)'}"


def amount(count: int, unit: str) -> str:
    """Format a count with a decimal prefix: 1.42 B, 512 kB, 2.84 GB."""
    size = float(count)
    prefixes = ["", "k", "M", "G"] if unit else ["", " k", " M", " B"]
    for prefix in prefixes[:-1]:
        if size < 1000:
            return f"{size:.3g} {prefix}{unit}".replace("  ", " ").strip()
        size /= 1000
    return f"{size:.3g} {prefixes[-1]}{unit}".replace("  ", " ").strip()


@click.command("show", short_help="what an entry, a model or a film is")
@cli.common
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of lines.")
def command(session: cli.Session, reference: str, as_json: bool) -> None:
    """Tell what REFERENCE is: an entry (path, key prefix or name), a converted model, or a film."""
    rows = run(reference, session.store)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<{width}}  {text}")
