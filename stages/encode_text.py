"""encode-text: prompts to umT5 embeddings.

Reads: a model's t5_encoder and tokenizer.
Writes: one entry per prompt with `prompt` (L, D) and `negative` (L, D), float32, trimmed to their
real length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe import cli, options
from wanpipe.config import T5Config
from wanpipe.errors import UsageError
from wanpipe.model import Model, find_model
from wanpipe.store import Draft, Entry, Recipe, Store

if TYPE_CHECKING:
    import mlx.core as mx

ALGORITHM = 1
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Params:
    """Prompts to encode; without a negative prompt the model's own is taken, as the official code
    does.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None


def run(model: Model, params: Params, store: Store) -> list[Entry]:
    """Encode every prompt that is not in the cache yet, with T5 loaded at most once, and return all
    entries in order.
    """
    from wanpipe.device import compute_dtype
    from wanpipe.text import Tokenizer

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
        material = {
            "t5": model.hash("t5_encoder"),
            "tokenizer": model.hash("tokenizer"),
            "prompt": list(ids),
            "negative": list(negative_ids),
            "text_len": text_len,
            "dtype": dtype,
        }
        made = {
            "prompt": prompt,
            "negative_prompt": negative,
            "model": str(model.directory.resolve()),
        }
        recipe = Recipe(stage="encode-text", algorithm=ALGORITHM, material=material, made=made)
        tasks.append((ids, recipe))
    missing = [ids for ids, recipe in tasks if store.wants(recipe)]
    encode = encoder(model, [*missing, negative_ids], dtype, store)
    return [store.obtain(recipe, filler(encode, ids, negative_ids)) for ids, recipe in tasks]


def encoder(
    model: Model, sequences: Sequence[Ids], dtype: str, store: Store
) -> "Callable[[Ids], mx.array]":
    """Return a function of ids that encodes all `sequences` in one pass through T5 when first
    called.
    """
    done: dict[Ids, mx.array] = {}

    def encode(ids: Ids) -> "mx.array":
        if ids not in done:
            from wanpipe.device import mlx_dtype
            from wanpipe.models import umt5

            wanted = list(dict.fromkeys([*sequences, ids]))
            config = T5Config.from_json(model.component("t5_encoder").config, "T5 config")
            path = model.checked("t5_encoder", store)
            with store.report.task("encode-text", config.layers) as task:
                rows = umt5.encode(path, config, wanted, mlx_dtype(dtype), task.advance)
            done.update(zip(wanted, rows, strict=True))
        return done[ids]

    return encode


def filler(
    encode: "Callable[[Ids], mx.array]", prompt: Ids, negative: Ids
) -> Callable[[Draft], dict[str, Any]]:
    """Return what writes the embeddings of both texts into an entry."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.device import made

        draft.write("prompt", np.array(encode(prompt)), "LD")
        draft.write("negative", np.array(encode(negative)), "LD")
        return made()

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
@cli.common
@options.model
@click.option("--prompt", multiple=True, help="What the video shows. Repeatable.")
@click.option("--prompt-file", type=options.PATH, help="A text file with one prompt a line.")
@options.negative
def command(
    session: cli.Session,
    model: str | None,
    prompt: tuple[str, ...],
    prompt_file: Path | None,
    negative_prompt: str | None,
    no_negative_prompt: bool,
) -> None:
    """Encode prompts with umT5, each together with the negative prompt; every prompt becomes one
    entry.
    """
    params = Params(
        prompts=read_prompts(prompt, prompt_file),
        negative_prompt=options.read_negative(negative_prompt, no_negative_prompt),
    )
    entries = run(find_model(model, [], session.store), params, session.store)
    session.deliver([entry.path for entry in entries])
