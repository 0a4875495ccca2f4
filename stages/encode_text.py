"""encode-text: prompts to umT5 embeddings.

Reads: a model's t5_encoder and tokenizer.
Writes: one entry per prompt with `prompt` (L, D) and `negative` (L, D), float32, trimmed to their
real length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.models.config import T5Config
from wanpipe.pipeline import budget, forecast
from wanpipe.pipeline.budget import ITEMSIZE, Need
from wanpipe.pipeline.lineage import reference
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import mlx.core as mx

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Params:
    """Prompts to encode; without a negative prompt the model's own is taken, as the official code
    does. `memory` is a limit in bytes.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    memory: int | None = None


def run(model: Model, params: Params, store: Store) -> list[Entry]:
    """Encode every prompt that is not in the cache yet, with T5 loaded at most once, and return all
    entries in order.
    """
    from wanpipe.backend.device import compute_dtype
    from wanpipe.pipeline.tokenizer import Tokenizer

    if not params.prompts:
        raise UsageError("no prompt is given; use --prompt or --prompt-file")
    negative = params.negative_prompt
    if negative is None:
        negative = model.config.defaults.negative_prompt
    tokenizer = Tokenizer(model.checked("tokenizer", store))
    text_len = model.config.dit.text_len
    dtype = compute_dtype(model.config.dtype)
    negative_ids = tuple(tokenizer.ids(negative, text_len))
    tasks: list[tuple[Ids, Recipe]] = []
    for prompt in params.prompts:
        ids = tuple(tokenizer.ids(prompt, text_len))
        named = material(
            "encode-text",
            t5=model.hash("t5_encoder"),
            tokenizer=model.hash("tokenizer"),
            prompt=list(ids),
            negative=list(negative_ids),
            text_len=text_len,
            dtype=dtype,
        )
        made = {
            "prompt": prompt,
            "negative_prompt": negative,
            "model": str(model.directory.resolve()),
        }
        recipe = Recipe(material=named, made=made)
        tasks.append((ids, recipe))
    missing = [ids for ids, recipe in tasks if store.wants(recipe)]
    encode = Encoding(model, [*missing, negative_ids], dtype, params.memory, store)
    entries = [store.obtain(recipe, filler(encode, ids, negative_ids)) for ids, recipe in tasks]
    store.keep_model(reference(model))
    if missing:
        forecast.tell("t5_encoder", "encode-text", encode.need, 1, store)
    return entries


@dataclass
class Encoding:
    """Rows of token ids; all `sequences` are encoded in one pass through T5 when one is wanted."""

    model: Model
    sequences: Sequence[Ids]
    dtype: str
    memory: int | None
    store: Store
    done: "dict[Ids, mx.array]" = field(default_factory=dict)

    @cached_property
    def config(self) -> T5Config:
        """Dimensions of T5."""
        return self.model.config.t5

    @cached_property
    def need(self) -> Need:
        """What the pass takes. Raises UsageError where --memory is less."""
        component, table = self.model.component("t5_encoder"), self.config.vocab * self.config.dim
        stored = ITEMSIZE[self.model.config.dtype]
        blocks = component.bytes - table * stored
        if component.bytes >= component.parameters * stored:  # no matrix is quantised
            blocks = (component.parameters - table) * ITEMSIZE[self.dtype]
        ways = [budget.text(self.config, blocks, [len(ids) for ids in self.sequences])]
        return budget.choose("t5_encoder", ways, self.memory, self.store.report)

    def rows(self, ids: Ids) -> "mx.array":
        """Rows (L, D) of one sequence, which may be one more than was expected."""
        if ids not in self.done:
            from wanpipe.backend.device import memory_limit, mlx_dtype
            from wanpipe.pipeline.text_encoder import encode

            wanted = list(dict.fromkeys([*self.sequences, ids]))
            path, dtype = self.model.checked("t5_encoder", self.store), mlx_dtype(self.dtype)
            with (
                self.store.report.task("encode-text", self.config.layers) as task,
                memory_limit(self.need.limit),
            ):
                rows = encode(path, self.config, wanted, dtype, task.advance)
            self.done = dict(zip(wanted, rows, strict=True))
        return self.done[ids]


def filler(encode: Encoding, prompt: Ids, negative: Ids) -> Callable[[Draft], dict[str, Any]]:
    """Return what writes the embeddings of both texts into an entry."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.backend.device import provenance

        fresh = not encode.done
        draft.write("prompt", np.array(encode.rows(prompt)))
        draft.write("negative", np.array(encode.rows(negative)))
        return provenance() | ({"flops": encode.need.flops} if fresh else {})

    return fill


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Join --prompt and the lines of --prompt-file; empty lines are skipped. Raises UsageError for
    an unreadable file.
    """
    lines: list[str] = []
    if file is not None:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"prompt file {file} cannot be read as UTF-8 text: {error}") from error
        if not lines:
            raise UsageError(f"prompt file {file} has no prompt; write one a line")
    return (*prompts, *lines)


@click.command("encode-text", short_help="prompts to umT5 embeddings")
@stage_options
@options.model
@click.option("--prompt", multiple=True, help="What the video shows. Repeatable.")
@click.option("--prompt-file", type=options.PATH, help="A text file with one prompt a line.")
@options.negative
@options.memory
def command(
    session: Session,
    model: str | None,
    prompt: tuple[str, ...],
    prompt_file: Path | None,
    negative_prompt: str | None,
    no_negative_prompt: bool,
    memory: int | None,
) -> None:
    """Encode prompts with umT5, each together with the negative prompt; every prompt becomes one
    entry.
    """
    params = Params(
        prompts=read_prompts(prompt, prompt_file),
        negative_prompt=options.read_negative(negative_prompt, no_negative_prompt),
        memory=memory,
    )
    entries = run(find_model(model, [], session.store), params, session.store)
    session.deliver([entry.path for entry in entries])
