"""Writes the model card of a converted model: README.md, as the Hugging Face Hub shows it.

It describes the model for people and for the Hub. Nothing reads it to run the model, and it is no
part of any hash of a component or key.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from wanpipe.checkpoints.hub.cache import parse_repository, repository_of
from wanpipe.models.config import ModelConfig
from wanpipe.runtime.disk import atomic_write
from wanpipe.runtime.documents import DocumentError, read_regular
from wanpipe.runtime.units import format_si

CARD = "README.md"
MAX_BYTES = 1 << 20  # of a card that is read
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
FIELD = re.compile(
    r"^(license|base_model): *['\"]?([\w./-]{1,200})['\"]?$", re.MULTILINE | re.ASCII
)
PIPELINES = {"i2v": "image-to-video"}  # by task; the others start from text
INPUTS = {"i2v": " --image cat.png"}
PROMPT = "a cat plays the piano"


def read_fields(directory: Path) -> dict[str, str]:
    """Return license and base_model where the card in a directory says them in plain words."""
    try:
        text = read_regular(directory / CARD, MAX_BYTES).decode("utf-8", "replace")
    except (OSError, DocumentError):  # without a readable card, nothing is known
        return {}
    front = FRONT_MATTER.match(text.replace("\r\n", "\n"))
    return dict(FIELD.findall(front[1])) if front else {}


def describe_source(directory: Path, is_model: bool) -> dict[str, str]:
    """Return what is known of the source of a conversion: `base_model`, a repository on the Hub, if
    it came from there, and the `license` that its own card states.
    """
    fields = read_fields(directory)
    repository = repository_of(directory)
    base = fields.get("base_model", "") if is_model else ""
    if repository is not None:
        base = repository.id
    known = {"base_model": base} if parse_repository(base) else {}
    return known | ({"license": fields["license"]} if "license" in fields else {})


def model_card(config: ModelConfig, source: dict[str, str]) -> str:
    """Return the card of a model; `source` as `describe_source` gives it."""
    base = source.get("base_model")
    title = base.partition("/")[2] if base else config.variant
    origin = f"[{base}](https://huggingface.co/{base})" if base else "a checkpoint"
    size = format_si(sum(one.bytes for one in config.components.values()), "B")
    run = f'--prompt "{PROMPT}"{INPUTS.get(config.task, "")} --output cat.mp4'
    lines = [
        *front_matter(config, source),
        f"# {title} for MLX",
        "",
        f"wanpipe converted this model from {origin}.",
        "",
        "| | |",
        "|---|---|",
        f"| variant | {config.variant} |",
        f"| type | {config.dtype} |",
        f"| quantization | {describe_quantization(config)} |",
        f"| size | {size} |",
        "",
        "Use it with wanpipe. In place of ORG/NAME, give the name of this repository:",
        "",
        "```bash",
        "wanpipe download ORG/NAME",
        f"wanpipe run --model ORG/NAME {run}",
        "```",
        "",
    ]
    return "\n".join(lines)


def write_card(directory: Path, config: ModelConfig, source: dict[str, str]) -> None:
    """Write the card of a model beside it, unless a README.md is there."""
    if not os.path.lexists(directory / CARD):
        atomic_write(directory / CARD, model_card(config, source).encode())


def front_matter(config: ModelConfig, source: dict[str, str]) -> Iterator[str]:
    """Yield the lines that the Hub reads."""
    yield "---"
    yield "library_name: mlx"
    yield f"pipeline_tag: {PIPELINES.get(config.task, 'text-to-video')}"
    for name in ("license", "base_model"):
        if name in source:
            yield f"{name}: {source[name]}"
    if config.quantization is not None and "base_model" in source:
        yield "base_model_relation: quantized"
    yield "tags:"
    tags = ["mlx", "wan", "wanpipe"]
    tags += [] if config.quantization is None else [f"{config.quantization.bits}-bit"]
    yield from (f"- {tag}" for tag in tags)
    yield "---"
    yield ""


def describe_quantization(config: ModelConfig) -> str:
    """Describe the quantization of the transformers."""
    if config.quantization is None:
        return "none"
    return f"{config.quantization.bits} bits in groups of {config.quantization.group_size}"
