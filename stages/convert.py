"""convert: convert a PyTorch checkpoint to a model that MLX loads lazily.

Reads: a checkpoint in a directory or the Hub's cache; or a converted model, to quantize it.
Writes: a model directory with config.json and one safetensors file per component, by default as an
entry of the cache; in a user's directory also a model card.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.cli.values import REFERENCE
from wanpipe.errors import UsageError
from wanpipe.models.config import Quantization
from wanpipe.pipeline.conversion import (
    Conversion,
    ModelFolder,
    byte_progress,
    with_known_content,
)
from wanpipe.pipeline.plan import Plan, Target, target
from wanpipe.store import Recipe, Store
from wanpipe.store import material as named
from wanpipe.weights.model import find_model

BITS, TEXT_BITS, GROUP_SIZE = 4, 8, 64  # of quantized matrices, by default


@dataclass(frozen=True, kw_only=True)
class Params:
    """What to convert and how: a checkpoint, or a converted model to quantize.

    `checkpoint_dir` is a directory, or ORG/NAME in the Hub's cache. `from_model` is a model as for
    --model; the new one keeps its dtype. Without
    `output_dir`, the model becomes an entry of the cache. `bits` and `group_size` apply to the
    transformers and to T5. By default, transformers have 4 bits, T5 has 8, and groups have 64
    weights.
    """

    checkpoint_dir: Path | None = None
    from_model: str | None = None
    output_dir: Path | None = None
    dtype: str = "bfloat16"
    model_version: str = "auto"
    quantize: bool = False
    quantize_text_encoder: bool = False
    bits: int | None = None
    group_size: int | None = None


def plan(params: Params, store: Store) -> Plan[Path]:
    """Plan a conversion. Making it returns the model's directory.

    Raises CheckpointError for a checkpoint that is incomplete or unknown, and UsageError for
    options that conflict or need another option.
    """
    check_params(params)
    folder = None if params.output_dir is None else ModelFolder(params.output_dir, store)
    if folder is not None:
        folder.check()
    plan_source = plan_from_model if params.from_model else plan_from_checkpoint
    conversion = plan_source(params, store)
    recipe = conversion.recipe
    if folder is not None:
        exists = folder.is_up_to_date(recipe.key)
        goal = Target(recipe=recipe, path=folder.path, exists=exists)
        return Plan(make=lambda: folder.fill(conversion), targets=(goal,))
    return Plan(make=conversion.publish, targets=(target(recipe, store),))


def run(params: Params, store: Store) -> Path:
    """Convert a checkpoint unless the model exists, and return the model's directory.

    Raises StoreError if there is not enough space, and the errors of `plan`.
    """
    return plan(params, store).make()


def check_params(params: Params) -> None:
    """Raise UsageError for options that conflict or need another option."""
    quantizes = params.quantize or params.quantize_text_encoder
    if (params.checkpoint_dir is None) == (params.from_model is None):
        raise UsageError(
            "convert takes a checkpoint or a model; give --checkpoint-dir or --from-model, not both"
        )
    if params.from_model is not None and not quantizes:
        raise UsageError(
            "--from-model is for quantizing; add --quantize or --quantize-text-encoder"
        )
    if not quantizes and (params.bits, params.group_size) != (None, None):
        raise UsageError(
            "--bits and --group-size say how to quantize; add --quantize or --quantize-text-encoder"
        )


def without_short_form(asked: dict[str, Any]) -> dict[str, Any]:
    """Replace -q BITS among options by --quantize --bits BITS. Raises UsageError for other bits."""
    rest = {name: value for name, value in asked.items() if name != "quantize_bits"}
    short, bits = asked["quantize_bits"], asked["bits"]
    if short is None:
        return rest
    if bits not in (None, short):
        raise UsageError(
            f"-q {short} is short for --quantize --bits {short}, got --bits {bits}; leave one out"
        )
    return {**rest, "quantize": True, "bits": short}


def plan_from_checkpoint(params: Params, store: Store) -> Conversion:
    """Return the conversion of a checkpoint."""
    from wanpipe.checkpoints.detect import detect
    from wanpipe.checkpoints.hub.cache import locate
    from wanpipe.checkpoints.source_hashes import source_hashes
    from wanpipe.weights import convert as engine
    from wanpipe.weights.card import describe_source

    assert params.checkpoint_dir is not None
    directory = locate(params.checkpoint_dir)
    checkpoint = detect(directory, params.model_version)
    if checkpoint.remark is not None:
        store.report.remark(checkpoint.remark)
    chosen = engine.Options(dtype=params.dtype, **quantization(params))
    chosen.check_group_sizes(checkpoint.dit, checkpoint.t5)
    with byte_progress(store.report, "read") as progress:
        hashes = source_hashes(checkpoint, store.hash_cache, progress)
    material = engine.material(checkpoint, hashes, chosen)
    made = {"checkpoint": str(directory.resolve())}
    recipe = recipe_of(material, made)
    if params.output_dir is None:
        recipe = with_known_content(recipe, store)
    if params.output_dir is not None or store.must_compute(recipe):
        # a refused checkpoint leaves no trace in the cache
        engine.check_readable(checkpoint, chosen)
    convert = partial(engine.convert, checkpoint, options=chosen)
    return Conversion(recipe, convert, store, describe_source(directory, is_model=False))


def plan_from_model(params: Params, store: Store) -> Conversion:
    """Return the conversion that quantizes a model.

    Every file of the converted model is checked.
    """
    from wanpipe.weights import convert as engine
    from wanpipe.weights.card import describe_source

    model = find_model(params.from_model, [], store)
    for name in model.config.components:
        model.checked(name, store)
    chosen = engine.Options(dtype=model.config.dtype, **quantization(params))
    engine.plan_requantized(model.directory, model.config, chosen)  # refuses what cannot be
    material = engine.material_of_model(model.config, chosen)
    made = {"from_model": str(model.directory.resolve())}
    convert = partial(engine.requantize, model.directory, options=chosen)
    source = describe_source(model.directory, is_model=True)
    return Conversion(recipe_of(material, made), convert, store, source)


def recipe_of(material: dict[str, Any], made: dict[str, Any]) -> Recipe:
    """Return the recipe of a converted model."""
    return Recipe(material=named("convert", **material), made=made, resumable=True)


def quantization(params: Params) -> dict[str, Quantization]:
    """Return the requested quantization of the transformers and of T5."""
    group_size = params.group_size or GROUP_SIZE
    asked = (
        ("quantization", params.quantize, params.bits or BITS),
        ("text_encoder", params.quantize_text_encoder, params.bits or TEXT_BITS),
    )
    return {
        name: Quantization(bits=bits, group_size=group_size)
        for name, wanted, bits in asked
        if wanted
    }


@click.command("convert")
@options.checkpoint
@options.quantization
@click.option(
    "--from-model",
    type=REFERENCE,
    metavar="MODEL",
    help="Quantize this converted model instead of a checkpoint.",
)
@click.option(
    "--output-dir",
    type=options.PATH,
    metavar="DIR",
    help="Write the model to DIR.  [default: an entry of the cache]",
)
@stage_options
def command(session: Session, **asked: Any) -> None:
    """Convert a PyTorch checkpoint to a model for MLX.

    Recognizes the variant of Wan by the files and their contents.
    """
    source = click.get_current_context().get_parameter_source("dtype")
    if asked["from_model"] is not None and source is not ParameterSource.DEFAULT:
        raise UsageError("--dtype is for checkpoints, a model keeps its own; leave it out")
    session.carry_out(plan(Params(**without_short_form(asked)), session.store))
