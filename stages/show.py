"""show: describe an entry, a run, a converted model, a video, a LoRA or a GGUF file, and where it
comes from.

Reads: an entry of the cache, a model directory, a video that wanpipe wrote, a LoRA or GGUF file;
the Hub's cache.
Writes: nothing; prints the description on stdout.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cache.describe import Rows, describe_entry, describe_run
from wanpipe.checkpoints.hub.cache import locate_file
from wanpipe.checkpoints.tensors import list_names
from wanpipe.cli.printing import print_json, print_lines
from wanpipe.cli.session import Session, read_only_options
from wanpipe.cli.values import REFERENCE
from wanpipe.denoising.loras import find_file
from wanpipe.errors import CheckpointError, StoreError
from wanpipe.pipeline.lineage import read_lineage
from wanpipe.runtime.documents import to_builtins as plain_data
from wanpipe.runtime.text import to_json
from wanpipe.runtime.units import format_si
from wanpipe.store import Store
from wanpipe.weights.model import Model, is_named_model, open_model

if TYPE_CHECKING:
    from wanpipe.weights.lora import LoraFile

LABELS = {"film": "video"}  # what a person reads for a key of the JSON


def run(reference: str, store: Store) -> dict[str, Any]:
    """Describe a video, a LoRA, a GGUF file, a model directory, an entry or run by path, key prefix
    or name, or what a repository holds in the Hub's cache: ORG/NAME or ORG/NAME:FILE.

    Raises UsageError, StoreError or CheckpointError if it is none of these.
    """
    rows = None if is_named_model(reference, store) else describe_path(Path(reference))
    if rows is not None:
        return dict(rows)
    if found := store.find_run(reference):
        return dict(describe_run(found, store))
    try:
        entry = store.peek_reference(reference)
    except StoreError as error:
        path = locate_file(Path(reference), f"a file, an entry of {store.root}")
        if path == Path(reference):
            raise
        rows = describe_path(path)
        if rows is None:
            raise CheckpointError(
                f"{reference} is neither a converted model nor a LoRA; convert the checkpoint with "
                f"`wanpipe convert --checkpoint-dir {reference}`"
            ) from error
        return dict(rows)
    if entry.stage == "convert":
        return dict(describe_model(open_model(entry.path)))
    return dict(describe_entry(entry, Store(entry.root, store.report)))


def describe_path(path: Path) -> Rows | None:
    """Describe a file, or a folder with a model, a LoRA or frames; return None for others."""
    if not path.is_dir():
        suffix = path.suffix.lower() if path.is_file() else ""
        describe = {".gguf": describe_gguf, ".safetensors": describe_lora}.get(suffix)
        return (describe or describe_video)(path) if path.exists() else None
    if (path / "config.json").is_file():
        return describe_model(open_model(path))
    if any(path.glob("*.safetensors")):
        return describe_lora(find_file(path))
    return describe_video(path) if any(path.glob("*.png")) else None


def describe_model(model: Model) -> Rows:
    """Describe a model: variant, dtype, quantization, components with their sizes, defaults."""
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
        count = (
            f"{format_si(component.parameters, '')} parameters, " if component.parameters else ""
        )
        fewer = f", {bits} bits" if (bits := bits_of(model, name)) else ""
        size = format_si(component.bytes, "B")
        yield f"component {name}", f"{count}{size}{fewer}, {component.hash[:8]}"
    yield "on disk", format_si(sum(one.bytes for one in config.components.values()), "B")
    for name, value in plain_data(config.defaults).items():
        if value is not None:
            yield f"default {name}", value


def bits_of(model: Model, name: str) -> int | None:
    """Return the bits per weight of a component's quantized matrices, read from its file; None if
    it has none.
    """
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
    """Describe a LoRA: key conventions, ranks, targets by kind, and the model it was made for.

    Raises CheckpointError if the file is not a LoRA for Wan.
    """
    from wanpipe.weights.lora import read_lora

    lora = read_lora(path)
    if not lora.modules and lora.second is None:
        raise CheckpointError(
            f"{path} is not a LoRA for Wan: no rule matches its keys ({list_names(lora.tensors)})"
        )
    yield "lora", str(path)
    if lora.second is None:
        yield from describe_modules(lora)
    else:
        for expert, half in (("high noise", lora), ("low noise", lora.second)):
            yield from ((f"{expert}: {name}", value) for name, value in describe_modules(half))
    if lora.ignored:
        yield "not understood", dict(Counter(lora.ignored.values()))
    yield "on disk", format_si(path.stat().st_size, "B")


def describe_modules(lora: "LoraFile") -> Rows:
    """Describe the modules that a LoRA changes in one transformer."""
    from wanpipe.weights.lora import count_scales, model_of

    yield "keys", dict(lora.key_formats.most_common())
    ranks = Counter(filter(None, map(lora.rank, lora.modules)))
    yield "ranks", {str(rank): f"{count} modules" for rank, count in ranks.most_common()}
    if ranks:
        scales = count_scales(lora)
        yield "scale", {scale: f"{count} modules" for scale, count in scales.most_common()}
    yield "targets", lora.kinds()
    yield "layers", lora.layers
    yield "made for", model_of(lora.width) if lora.width else "unknown: no tensor shows the width"
    if lora.image_branch:
        yield "image branch", "for Wan2.1 I2V; other models ignore these keys"


def describe_gguf(path: Path) -> Rows:
    """Describe a GGUF file: the network, its width, and the types of its tensors."""
    from wanpipe.checkpoints.gguf_file import ARCHITECTURE
    from wanpipe.checkpoints.read import open_tensors
    from wanpipe.checkpoints.state_dict import recognize
    from wanpipe.weights.lora import model_of

    with open_tensors(path) as file:
        found = recognize(file.tensors)
        types = Counter(map(file.stored_type, file.tensors))
        count = sum(prod(info.shape) for info in file.tensors.values())
        yield "gguf", str(path)
        yield "network", found[0].kind if found else "none of Wan that wanpipe knows"
        width = file.tensors.get(f"{found[1]}patch_embedding.bias") if found else None
        if width is not None:
            yield "made for", model_of(prod(width.shape))
        if architecture := file.metadata.get(ARCHITECTURE):
            yield "architecture", architecture
    yield "types", {name: f"{number} tensors" for name, number in types.most_common()}
    yield "parameters", format_si(count, "")
    yield "on disk", format_si(path.stat().st_size, "B")


def describe_video(path: Path) -> Rows:
    """Describe the lineage in a video's metadata. Raises UsageError if it has none."""
    lineage = read_lineage(path)
    yield "film", str(path)
    yield from lineage.items()


@click.command("show")
@click.argument("reference", type=REFERENCE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@read_only_options
def command(session: Session, reference: str, as_json: bool) -> None:
    """Describe an entry, a model, a video, a LoRA or a GGUF file.

    REFERENCE is an entry or a run (path, key prefix or name), the directory of a converted model, a
    video that wanpipe wrote, or a LoRA or GGUF file. ORG/NAME is a model or a LoRA that was
    downloaded from the Hugging Face Hub, and ORG/NAME:FILE one of its files.
    """
    rows = run(reference, session.store)
    if as_json:
        print_json(rows)
        return
    labels = {name: LABELS.get(name, name) for name in rows}
    width = max(map(len, labels.values()))
    print_lines(
        f"{labels[name]:<{width}}  {value if isinstance(value, str) else to_json(value)}"
        for name, value in rows.items()
    )
