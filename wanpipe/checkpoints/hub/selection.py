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
from wanpipe.checkpoints.hub.listing import HubError, Listing
from wanpipe.checkpoints.tensors import list_names
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


def select(listing: Listing, include: Sequence[str]) -> list[str]:
    """Return the files of a repository that match the patterns; without one, those that wanpipe
    reads. Raises HubError where there are none.
    """
    repository = listing.repository
    for pattern in include:
        if not match_files(listing.files, [pattern]):
            raise HubError(
                f"{repository} has no file that matches {pattern}; list all with "
                f"`wanpipe download {repository} --include '*' --dry-run`"
            )
    if include:
        return match_files(listing.files, include)
    found = choose_files(listing.files)
    if found is None:
        weights = [name for name in sorted(listing.files) if name.lower().endswith(WEIGHTS)]
        what = f"files to choose from ({list_names(weights)})" if weights else "no weights"
        raise HubError(
            f"{repository} is no checkpoint in the official or diffusers layout, but holds {what}; "
            "name some with --include"
        )
    return found


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
            found |= network_files(every, f"{folder}/{stem}")
    elif transformers := official_transformers(every):
        found = {T5_FILE, CLIP_FILE, TOKENIZER_FILE, *VAE_FILES.values()}
        for folder in transformers:
            found |= {f"{folder}{CONFIG}", *network_files(every, f"{folder}{DIT_STEM}")}
    else:
        return None
    return sorted({*found, CARD} & every)


def official_transformers(names: Collection[str]) -> list[str]:
    """Return the folders of the transformers in the official layout: two experts, or the top."""

    def present(*folders: str) -> list[str]:
        return [folder for folder in folders if network_files(names, f"{folder}{DIT_STEM}")]

    return present(*(f"{folder}/" for folder in EXPERT_FOLDERS)) or present("")


def network_files(names: Collection[str], stem: str) -> set[str]:
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
