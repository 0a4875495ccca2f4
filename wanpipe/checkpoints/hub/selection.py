"""Chooses the files of a repository that wanpipe reads, by their names alone.

The layouts are those of `wanpipe.checkpoints.folders`, and a model that wanpipe converted. Other
repositories hold files to choose from, such as single files or LoRAs.
"""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from wanpipe.checkpoints.folders import (
    CLIP_FILE,
    DIT_STEM,
    EXPERT_FOLDERS,
    PIPELINE_FILE,
    T5_FILE,
    TOKENIZER_FILE,
    VAE_FILES,
)
from wanpipe.models.config import Components, component_file

CONFIG = "config.json"
CARD = "README.md"  # says the license
# the folders of a pipeline of diffusers, with the name of the weights in each
PIPELINE_STEMS = {
    "transformer": DIT_STEM,
    "transformer_2": DIT_STEM,
    "vae": DIT_STEM,
    "text_encoder": "model",
    "image_encoder": "model",
}
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf")


def choose_files(names: Collection[str]) -> list[str] | None:
    """Return the files that a conversion or a run reads; None for a repository in no layout that
    says which files belong together.
    """
    every = set(names)
    components = {component_file(name) for name in Components.__struct_fields__}
    if {CONFIG, "t5_encoder.safetensors", "vae.safetensors"} <= every:
        found = {CONFIG, *components}
    elif PIPELINE_FILE in every:
        found = {PIPELINE_FILE, "tokenizer/tokenizer.json"}
        found |= {f"{folder}/{CONFIG}" for folder in PIPELINE_STEMS if "transformer" in folder}
        for folder, stem in PIPELINE_STEMS.items():
            found |= weights(every, f"{folder}/{stem}")
    elif transformers := official_transformers(every):
        found = {T5_FILE, CLIP_FILE, TOKENIZER_FILE, *VAE_FILES.values()}
        for folder in transformers:
            found |= {f"{folder}{CONFIG}", *weights(every, f"{folder}{DIT_STEM}")}
    else:
        return None
    return sorted({*found, CARD} & every)


def official_transformers(names: Collection[str]) -> list[str]:
    """Return the folders of the transformers in the official layout: two experts, or the top."""

    def present(*folders: str) -> list[str]:
        return [folder for folder in folders if weights(names, f"{folder}{DIT_STEM}")]

    return present(*(f"{folder}/" for folder in EXPERT_FOLDERS)) or present("")


def weights(names: Collection[str], stem: str) -> set[str]:
    """Return the files of a network: its index and all shards, else one file or shards without an
    index. Other precisions, such as `<stem>.fp16.safetensors`, are left out.
    """
    index, single = f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    shard = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}\.safetensors")
    shards = set(filter(shard.fullmatch, names))
    if index in names and shards:
        return {index, *shards}
    alone = {single, index} & set(names)
    return alone if single in names else shards


def match_files(names: Collection[str], patterns: Sequence[str]) -> list[str]:
    """Return the files that match one of the patterns, as `hf download --include` does: * stands
    for slashes too, and a pattern that ends with a slash for all below that folder.
    """
    whole = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]
    return sorted(name for name in names if any(fnmatchcase(name, one) for one in whole))


def is_weights(name: str) -> bool:
    """Return whether a file holds weights, by its suffix."""
    return name.lower().endswith(WEIGHTS)
