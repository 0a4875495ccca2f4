"""encode-text: encode prompts to umT5 embeddings.

Reads: a model's t5_encoder and tokenizer.
Writes: one entry per prompt with `prompt` (L, D) and `negative` (L, D), float32, without padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli import options
from wanpipe.cli.prompts import read_prompts
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.models.config import T5Config
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE, MemoryPlan
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.plan import Plan, Work, plan_entries
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.pipeline.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Params:
    """Prompts to encode. Without a negative prompt, the model's default is used.

    `memory` is a limit in bytes.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    memory: int | None = None


def plan(model: Model, params: Params, store: Store) -> Plan[list[Entry]]:
    """Plan one entry for each prompt. Raises UsageError without a prompt."""
    from wanpipe.pipeline.tokenizer import tokenizer_of

    if not params.prompts:
        raise UsageError("no prompt is given; use --prompt or --prompt-file")
    return plan_with(tokenizer_of(model, store), model, params, store)


def plan_with(
    tokenizer: "Tokenizer", model: Model, params: Params, store: Store
) -> Plan[list[Entry]]:
    """Plan as `plan` does, with the model's tokenizer, which takes a second to open."""
    negative = params.negative_prompt
    if negative is None:
        negative = model.config.defaults.negative_prompt
    text_len = model.config.dit.text_len
    negative_ids, *prompt_ids = map(tuple, tokenizer.ids([negative, *params.prompts], text_len))
    tasks: list[tuple[Ids, Recipe]] = []
    for prompt, ids in zip(params.prompts, prompt_ids, strict=True):
        made = {"prompt": prompt, "negative_prompt": negative}
        tasks.append((ids, recipe_of(model, ids, negative_ids, made)))
    missing = [ids for ids, recipe in tasks if store.must_compute(recipe)]
    encoding = Encoding(model, [*missing, negative_ids], params.memory, store)
    work = []
    if missing:
        work.append(
            Work(
                component="t5_encoder",
                stage="encode-text",
                plan=encoding.plan,
                model=model,
                memory=params.memory,
                whole=False,
            )
        )

    def make() -> list[Entry]:
        entries = [
            store.get_or_create(recipe, filler(encoding, ids, negative_ids))
            for ids, recipe in tasks
        ]
        store.save_model(reference(model))
        return entries

    return plan_entries([recipe for _, recipe in tasks], make, work, store)


def run(model: Model, params: Params, store: Store) -> list[Entry]:
    """Encode every prompt that is not in the cache yet, and return all entries in order.

    T5 runs at most once. Raises UsageError without a prompt.
    """
    return plan(model, params, store).make()


def recipe_of(model: Model, prompt: Ids, negative: Ids, made: dict[str, Any]) -> Recipe:
    """Return the recipe of the entry of a prompt and a negative prompt, given as token ids."""
    from wanpipe.backend.device import compute_dtype

    named = material(
        "encode-text",
        t5=model.hash("t5_encoder"),
        tokenizer=model.hash("tokenizer"),
        prompt=list(prompt),
        negative=list(negative),
        text_len=model.config.dit.text_len,
        dtype=compute_dtype(model.config.dtype),
    )
    return Recipe(material=named, made={**made, "model": str(model.directory.resolve())})


@dataclass
class Encoding:
    """Embeddings of token ids. All `sequences` go through T5 together when the first is needed."""

    model: Model
    sequences: Sequence[Ids]
    memory: int | None
    store: Store
    done: "dict[Ids, mx.array]" = field(default_factory=dict)

    @cached_property
    def dtype(self) -> str:
        """The dtype of matrix products."""
        from wanpipe.backend.device import compute_dtype

        return compute_dtype(self.model.config.dtype)

    @cached_property
    def config(self) -> T5Config:
        """Dimensions of T5."""
        return self.model.config.t5

    @cached_property
    def plan(self) -> MemoryPlan:
        """The memory plan of T5. Raises UsageError if --memory is less than it needs."""
        component, table = self.model.component("t5_encoder"), self.config.vocab * self.config.dim
        stored = ITEMSIZE[self.model.config.dtype]
        blocks = component.bytes - table * stored
        if component.bytes >= component.parameters * stored:  # no matrix is quantized
            blocks = (component.parameters - table) * ITEMSIZE[self.dtype]
        plans = [budget.text_plan(self.config, blocks, [len(ids) for ids in self.sequences])]
        return budget.choose_plan("t5_encoder", plans, self.memory, self.store.report)

    def rows(self, ids: Ids) -> "mx.array":
        """Return the rows (L, D) of a sequence, even of one that was not expected."""
        if ids not in self.done:
            from wanpipe.backend.device import memory_limit, mlx_dtype
            from wanpipe.pipeline.encoders.text import encode

            wanted = list(dict.fromkeys([*self.sequences, ids]))
            path, dtype = self.model.checked("t5_encoder", self.store), mlx_dtype(self.dtype)
            with (
                self.store.report.task("encode-text", self.config.layers) as task,
                memory_limit(self.plan.limit),
            ):
                rows = encode(path, self.config, wanted, dtype, task.advance)
            self.done = dict(zip(wanted, rows, strict=True))
        return self.done[ids]


def filler(encode: Encoding, prompt: Ids, negative: Ids) -> Callable[[Draft], dict[str, Any]]:
    """Return the function that writes the embeddings of both texts into an entry."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.backend.device import provenance

        fresh = not encode.done
        draft.write("prompt", np.array(encode.rows(prompt)))
        draft.write("negative", np.array(encode.rows(negative)))
        return provenance() | ({"flops": encode.plan.flops} if fresh else {})

    return fill


@click.command("encode-text")
@options.model
@click.option(
    "--prompt",
    multiple=True,
    metavar="TEXT",
    help="Encode this prompt; - reads it from standard input. Repeatable.",
)
@click.option(
    "--prompt-file",
    type=options.PATH,
    metavar="FILE",
    help="Encode every line of this text file as a prompt.",
)
@options.negative
@options.memory
@stage_options
def command(
    session: Session,
    model: str | None,
    prompt: tuple[str, ...],
    prompt_file: Path | None,
    negative_prompt: str | None,
    no_negative_prompt: bool,
    memory: int | None,
) -> None:
    """Encode prompts to text embeddings with umT5.

    Each prompt becomes one entry, together with the negative prompt.
    """
    params = Params(
        prompts=read_prompts(prompt, prompt_file),
        negative_prompt=options.read_negative(negative_prompt, no_negative_prompt),
        memory=memory,
    )
    found = find_model(model, [], session.store)
    session.carry_out(plan(found, params, session.store))
