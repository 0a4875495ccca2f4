"""show: what an entry, a converted model, a film or a LoRA is, and where it comes from.

Reads: an entry of the cache, a model directory, a film that decode wrote, or a LoRA file.
Writes: nothing; a description goes to stdout.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from wanpipe.checkpoints.tensors import listed
from wanpipe.cli.session import Session, read_only_options
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.pipeline.lineage import Lineage
from wanpipe.runtime.documents import DocumentError, decode
from wanpipe.runtime.documents import plain as plain_data
from wanpipe.runtime.units import amount, clock, plain
from wanpipe.store import Entry, Run, Store
from wanpipe.store.entry import record_at
from wanpipe.store.index import size_of
from wanpipe.store.schema import ROLES
from wanpipe.weights.model import Model, open_model

Rows = Iterator[tuple[str, Any]]


def run(reference: str, store: Store) -> dict[str, Any]:
    """Describe what `reference` means: a film, a LoRA, a model directory, or an entry by path, key
    prefix or name.
    """
    path = Path(reference)
    if path.is_dir() and (path / "config.json").is_file():
        return dict(describe_model(open_model(path)))
    if path.suffix == ".safetensors" and path.is_file():
        return dict(describe_lora(path))
    if path.is_file() or (path.is_dir() and any(path.glob("*.png"))):
        return dict(describe_film(path))
    if run := store.run_of(reference):
        return dict(describe_run(run, store))
    entry = store.look(reference)
    if entry.stage == "convert":
        return dict(describe_model(open_model(entry.path)))
    return dict(describe_entry(entry, Store(entry.root, store.report)))


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
        fewer = f", {bits} bits" if (bits := bits_of(model, name)) else ""
        size = amount(component.bytes, "B")
        yield f"component {name}", f"{count}{size}{fewer}, {component.hash[:8]}"
    yield "on disk", amount(sum(one.bytes for one in config.components.values()), "B")
    for name, value in plain_data(config.defaults).items():
        if value is not None:
            yield f"default {name}", value


def bits_of(model: Model, name: str) -> int | None:
    """Bits per weight of a component's quantised matrices, as its file tells; None without any."""
    from wanpipe.checkpoints.read import open_tensors

    width = getattr(model.component(name).config, "dim", None)
    if width is None:
        return None
    with open_tensors(model.file(name)) as file:
        for first in ("blocks.0.self_attn.q", "blocks.0.attn.q"):
            if f"{first}.scales" in file.tensors:
                return int(32 * file.tensors[f"{first}.weight"].shape[1] // width)
    return None


def describe_lora(path: Path) -> Rows:
    """Tell a LoRA's conventions, ranks, targets by kind, and the models that it fits.

    Raises CheckpointError for a file that is no LoRA.
    """
    from wanpipe.weights.lora import model_of, read_lora

    lora = read_lora(path)
    if not lora.modules:
        raise CheckpointError(
            f"{path} is not a LoRA for Wan: no rule knows its keys ({listed(lora.tensors)})"
        )
    yield "lora", str(path)
    yield "keys", dict(lora.forms.most_common())
    ranks = Counter(filter(None, map(lora.rank, lora.modules)))
    yield "ranks", {str(rank): f"{count} modules" for rank, count in ranks.most_common()}
    yield "targets", lora.kinds()
    yield "layers", lora.layers
    yield "made for", model_of(lora.width) if lora.width else "unknown: no tensor tells the width"
    if lora.image_branch:
        yield "image branch", "has one: made for Wan2.1 I2V, whose keys other models ignore"
    if lora.ignored:
        yield "not understood", dict(Counter(lora.ignored.values()))
    yield "on disk", amount(path.stat().st_size, "B")


def describe_film(path: Path) -> Rows:
    """Tell the lineage that a film carries. Raises UsageError where it carries none."""
    from wanpipe.media import video

    comment = video.read_metadata(path).get("comment", "")
    try:
        lineage = decode(comment, Lineage).wanpipe
    except DocumentError as error:
        raise UsageError(
            f"{path} says nothing of how it was made; give a film that wanpipe wrote"
        ) from error
    yield "film", str(path)
    yield from lineage.items()


def describe_run(run: Run, store: Store) -> Rows:
    """Tell what was asked for in a run, how far it is, and its videos."""
    yield "run", run.key
    yield from asked(run)
    there = sum(store.has("denoise", key) for key in run.steps)
    yield "steps", f"{there} of {len(run.steps)} are there"
    yield "last step", run.last
    for role, key in run.inputs.items():
        yield f"from {role}", f"{ROLES[role]}/{key}"
    if isinstance(run.start, str):
        yield "branches from", f"denoise/{run.start}"
    yield "model", run.model.directory
    for video in run.videos:
        yield f"video {Path(video.path).name}", f"{video.path}, {video.fps:g} frames per second"


def asked(run: Run) -> Rows:
    """Tell prompts, seed and settings of a run."""
    fields = {"prompt": run.prompt, "negative_prompt": run.negative_prompt, "seed": run.seed}
    yield from ((name, value) for name, value in fields.items() if value is not None)
    yield "settings", plain_data(run.settings)


def describe_entry(entry: Entry, store: Store) -> Rows:
    """Tell what an entry is, what it was made from back to prompt and model, its arrays and how it
    was made.
    """
    made, material = entry.made, plain_data(entry.material)
    yield "entry", str(entry.path)
    yield "stage", entry.stage
    runs = store.runs.of(entry.key) if entry.stage == "denoise" else []
    if entry.stage == "denoise":
        yield "step", f"{entry.step + 1}" + (f" of {runs[0].settings.steps}" if runs else "")
    if runs:
        yield "run", ", ".join(run.key for run in runs)
        yield from asked(runs[0])
    noted = {
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "image": made.image,
        "fit": made.fit,
    }
    yield from ((name, value) for name, value in noted.items() if value is not None)
    for name, value in material.items():
        if name not in {"schema", "stage", "algorithm", "prompt", "negative"} and value is not None:
            yield f"material {name}", value
    for name, numbers in made.statistics.items():
        text = ", ".join(f"{key} {value:.4g}" for key, value in plain_data(numbers).items())
        yield f"array {name}", f"{entry.shape(name)}, {text}"
    yield "on disk", amount(size_of(entry.path), "B")
    yield "made", f"{made.time} in {clock(made.seconds)} ({made.seconds} s) on {made.device}"
    yield (
        "made with",
        f"wanpipe {made.wanpipe}, mlx {made.mlx}, peak {amount(made.peak_bytes, 'B')}",
    )
    if made.bits_by:
        yield "bits follow from", made.bits_by
    labels = [*store.names.of(f"{entry.stage}/{entry.key}")]
    labels += ["pinned"] if store.pins.get(entry.key) else []
    if labels:
        yield "names", ", ".join(labels)
    model = runs[0].model.directory if runs else made.model
    yield "model", model
    if checkpoint := checkpoint_of(model or ""):
        yield "checkpoint", checkpoint
    yield from describe_inputs(entry, store)


def describe_inputs(entry: Entry, store: Store) -> Rows:
    """Tell what an entry was made from, and what that was made from."""
    for role, key in entry.inputs.items():
        stage = ROLES[role]
        try:
            there = store.peek(stage, key)
            told = f": {summary(there, store)}" if there else " (gone)"
        except StoreError:
            there, told = None, " (damaged)"
        yield f"from {role}", f"{stage}/{key}{told}"
        if there is not None:
            yield from describe_inputs(there, store)


def summary(entry: Entry, store: Store) -> str:
    """An input in a few words."""
    if entry.stage != "denoise":
        return entry.made.prompt or entry.made.image or ""
    run = store.runs.latest(entry.key)
    if run is None:
        return f"step {entry.step + 1}"
    return f"step {entry.step + 1} of {run.settings.steps}, seed {run.seed}"


def checkpoint_of(model: str) -> str | None:
    """The checkpoint that a model was converted from, where the model lies in a cache."""
    try:
        return record_at(Path(model)).made.checkpoint
    except StoreError:
        return None


@click.command("show", short_help="what an entry, a model, a film or a LoRA is")
@read_only_options
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of lines.")
def command(session: Session, reference: str, as_json: bool) -> None:
    """Tell what REFERENCE is: an entry (path, key prefix or name), a converted model, a film, or a
    LoRA.
    """
    rows = run(reference, session.store)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(plain(f"{name:<{width}}  {text}"))
