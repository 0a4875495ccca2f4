"""Reads the keys of a LoRA file, in any of the field's formats.

Headers only; `merge` reads the numbers, `lora_match` finds the parameters that they change.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import RenameRule, Shape, match_rules
from wanpipe.checkpoints.rules import lora as lora_rules
from wanpipe.checkpoints.state_dict import split_scales
from wanpipe.checkpoints.tensors import TensorInfo, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.config import HIGH, LOW
from wanpipe.store.keys import key_of
from wanpipe.weights.lora_scale import LoraScale, read_scale

UNKNOWN = "unknown"
# parts of a module that change a parameter, by the parameter's last word
PARTS_BY_PARAMETER = {
    "weight": ("down", "up", "alpha", "weight"),
    "bias": ("bias",),
    "modulation": ("modulation",),
}
DIM_INPUTS = re.compile(
    r"(vace_)?blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.0)"
)  # layers whose input has the width of the tokens
BLOCK_NAME = re.compile(r"blocks\.(\d{1,6})(\..*)?")
VACE_BLOCK_NAME = re.compile(r"vace_blocks\.\d{1,6}(?=\.|$)")


@dataclass(kw_only=True)
class LoraFile:
    """The tensors of one file: of each module, by its official name, the key of each part.

    `key_formats` counts how its keys are written, such as `diffusion_model.<module>.lora_A.weight`.
    `factors` are the scales of 8-bit floats by key. `scale` is that of products without an alpha
    tensor, for modules as they are `written`. `second` has the tensors for the low-noise expert of
    a file with both; then these are for the high-noise expert.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    factors: Mapping[str, float] = field(default_factory=dict)
    scale: LoraScale | None = None
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    half_dotted: bool = False  # kohya's underscores, but for some dots
    ignored: dict[str, str] = field(default_factory=dict)  # key to reason
    key_formats: Counter[str] = field(default_factory=Counter)
    second: "LoraFile | None" = None

    def of(self, expert: str) -> "LoraFile":
        """Return the part for an expert."""
        return self.second if self.second is not None and expert == LOW else self

    def scale_of(self, module: str) -> float:
        """Return the scale of a module's product, but for its alpha tensor if it has one."""
        parts = self.modules[module]
        if self.scale is None or "alpha" in parts or not {"down", "up"} <= set(parts):
            return 1.0
        return self.scale.of(self.written[module], self.rank(module))

    def shape(self, module: str, part: str) -> Shape:
        """Shape of one part of a module."""
        return self.tensors[self.modules[module][part]].shape

    def rank(self, module: str) -> int:
        """Rank of a module's product; 0 where it has none. Raises CheckpointError for half a
        product, or halves that do not fit each other.
        """
        halves = [part for part in ("down", "up") if part in self.modules[module]]
        subject = f"{self.path}: {quote_name(module)}"
        if not halves:
            return 0
        if len(halves) == 1:
            raise CheckpointError(
                f"{subject} has only the {halves[0]} matrix of its two; download the LoRA again"
            )
        down, up = self.shape(module, "down"), self.shape(module, "up")
        if len(down) < 2 or len(up) < 2 or prod(up[2:]) != 1 or 0 in (*down, *up):
            raise CheckpointError(
                f"{subject} must be a product of two matrices, got {up} and {down}; download the "
                "LoRA again"
            )
        if down[0] != up[1]:
            raise CheckpointError(
                f"{subject} must have one rank, got {up[1]} (up) and {down[0]} (down); the file "
                "is damaged"
            )
        return down[0]

    @property
    def width(self) -> int | None:
        """Width of the transformer that it was made for, where its tensors tell."""
        for module, parts in self.modules.items():
            for part in ("down", "weight"):
                if (
                    part in parts
                    and DIM_INPUTS.fullmatch(module)
                    and len(self.shape(module, part)) == 2
                ):
                    return self.shape(module, part)[1]
        return None

    @property
    def layers(self) -> int:
        """How many blocks a model must have for it."""
        blocks = (BLOCK_NAME.fullmatch(module) for module in self.modules)
        return max((int(found[1]) + 1 for found in blocks if found), default=0)

    def kinds(self) -> dict[str, int]:
        """Count the modules by kind: their names without the block that they are in."""

        def kind(module: str) -> str:
            found = BLOCK_NAME.fullmatch(module)
            if found is None:
                return VACE_BLOCK_NAME.sub("vace_blocks", module)
            return found[2].lstrip(".") if found[2] else "modulation"

        return dict(Counter(map(kind, self.modules)))

    @property
    def image_branch(self) -> bool:
        """Whether it changes what only Wan2.1 I2V has."""
        return any(map(is_image_branch, self.modules))


def is_image_branch(module: str) -> bool:
    """Whether only Wan2.1 I2V has a module."""
    return re.fullmatch(lora_rules.IMAGE_BRANCH, module) is not None


def is_vace(module: str) -> bool:
    """Whether only VACE has a module."""
    return re.fullmatch(lora_rules.VACE, module) is not None


class KeyParts(NamedTuple):
    """A key in its parts. `module` is as written, with dots or `underscored`; `second` is that of
    the second transformer of a file.
    """

    second: bool
    module: str
    underscored: bool
    part: str
    key_format: str


def read_lora(path: Path) -> LoraFile:
    """Read the header of a LoRA file, sort its keys, and find the scale of its products.

    Raises CheckpointError for a file that cannot be read, that holds another kind of adapter, or
    that gives a tensor twice.
    """
    with open_tensors(path) as file:
        weights, factors = split_scales(file, "", file.tensors)
        tensors, metadata = {key: file.tensors[key] for key in weights}, file.metadata
    first = LoraFile(path=path, tensors=tensors, factors=factors)
    second = LoraFile(path=path, tensors=tensors, factors=factors)
    split = {key: _split_key(key) for key in tensors if not _is_elsewhere(first, key)}
    names = _official_names(
        {(found.module, found.underscored) for found in split.values() if found}
    )
    for key, found in split.items():
        module = found and names[found.module, found.underscored]
        if not found or not module:
            first.ignored[key] = UNKNOWN
        else:
            _add_key(second if found.second else first, module, found, key)
    for half in (first, second):
        if any("down" in parts and "alpha" not in parts for parts in half.modules.values()):
            half.scale = read_scale(path, metadata, half is second)
    if second.modules:
        first.second = second
    return first


def _add_key(lora: LoraFile, module: str, found: KeyParts, key: str) -> None:
    """Add a key of a module to the half that it is of."""
    parts = lora.modules.setdefault(module, {})
    if found.part in parts:
        raise CheckpointError(
            f"{lora.path} gives {quote_name(module)} twice, as {quote_name(parts[found.part])} and "
            f"{quote_name(key)}; use a file with one LoRA"
        )
    parts[found.part] = key
    lora.written[module] = found.module
    lora.half_dotted |= found.underscored and "." in found.module
    theirs = found.module.replace(".", "_") != module.replace(".", "_")
    lora.key_formats[found.key_format.replace("<", "<diffusers " if theirs else "<")] += 1


def identities(lora: LoraFile, digest: str) -> dict[str | None, str]:
    """Return the hash of a LoRA in keys, by the expert that gets it; None: every expert.

    It is the content hash of the file, as in 0.1.0, joined with whatever else changes a result.
    """
    if lora.second is None:
        return {None: _identity(lora, digest)}
    halves = {HIGH: _identity(lora, digest), LOW: _identity(lora.second, digest, second=True)}
    return {expert: key for expert, key in halves.items() if expert == LOW or lora.modules}


def _identity(lora: LoraFile, digest: str, second: bool = False) -> str:
    scales = {module: lora.scale_of(module) for module in sorted(lora.modules)}
    used = {key for parts in lora.modules.values() for key in parts.values()}
    read: dict[str, Any] = {
        "scales": {module: scale for module, scale in scales.items() if scale != 1},
        "factors": {key: factor for key, factor in sorted(lora.factors.items()) if key in used},
        "half_dotted": lora.half_dotted,
        "second": second,
    }
    differs = {name: value for name, value in read.items() if value}
    return key_of({"file": digest, **differs}) if differs else digest


def count_scales(lora: LoraFile) -> Counter[str]:
    """Count the modules by scale, and by the source of the scale; reads the alphas."""
    counts: Counter[str] = Counter()
    with open_tensors(lora.path) as file:
        for module, parts in lora.modules.items():
            if not (rank := lora.rank(module)):
                continue
            if "alpha" in parts:
                scale, source = file.read_number(parts["alpha"]) / rank, "alpha tensors"
            elif lora.scale is not None:
                scale, source = lora.scale_of(module), lora.scale.source
            else:
                scale, source = 1.0, "no alpha is given"
            counts[f"{scale:.6g} ({source})"] += 1
    return counts


def _is_elsewhere(lora: LoraFile, key: str) -> bool:
    """Ignore a key of another network; refuse one of another kind of adapter."""
    for pattern, kind in lora_rules.OTHER_ADAPTERS:
        if re.search(f"{pattern}$", key):
            raise CheckpointError(
                f"{lora.path} is a {kind} adapter ({quote_name(key)}); use a LoRA, or have it "
                "merged into full differences"
            )
    for pattern, reason in lora_rules.OTHER_NETWORKS:
        if re.fullmatch(pattern, key):
            lora.ignored[key] = reason
            return True
    return False


def _split_key(key: str) -> KeyParts | None:
    """Split a key into its parts; None if it is not a LoRA key."""
    rest, second = key, False
    dotted = (*lora_rules.SECOND_PREFIXES, *lora_rules.DOTTED_PREFIXES)
    while prefix := next((one for one in dotted if rest.startswith(one)), ""):
        rest, second = rest.removeprefix(prefix), second or prefix in lora_rules.SECOND_PREFIXES
    flat = (*lora_rules.SECOND_UNDERSCORED_PREFIXES, *lora_rules.UNDERSCORED_PREFIXES)
    underscored = next((one for one in flat if rest.startswith(one)), "")
    second = second or underscored in lora_rules.SECOND_UNDERSCORED_PREFIXES
    rest = rest.removeprefix(underscored)
    front = key.removesuffix(rest)
    for pattern, part in lora_rules.KEY_ENDINGS:
        if found := re.fullmatch(f"(?P<module>.+?)(?P<end>{pattern})", rest):
            written = f"{front}<module>{found['end']}"
            return KeyParts(second, found["module"], bool(underscored), part, written)
    return None


def _official_names(modules: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], str | None]:
    """Map modules as written, with dots or underscores, to their official names."""
    rules = (*lora_rules.DIFFUSERS_RULES, *lora_rules.OFFICIAL_RULES)
    flat = tuple(RenameRule(rule.pattern.replace(".", "_"), rule.target) for rule in rules)
    names: dict[tuple[str, bool], str | None] = {}
    for underscored, table in ((False, rules), (True, flat)):
        # some tools leave dots in names with underscores: blocks_22.self_attn.k
        written = {
            module: module.replace(".", "_") if underscored else module
            for module, kind in modules
            if kind == underscored
        }
        found = {
            name: target for name, _, target in match_rules(as_tensors(written.values()), table)
        }
        names |= {(module, underscored): found[name] for module, name in written.items()}
    return names


def as_tensors(names: Iterable[str]) -> dict[str, TensorInfo]:
    return dict.fromkeys(names, TensorInfo((), "F32", 0))


def model_of(width: int) -> str:
    """Name a transformer by its width, and the Wan models that have it."""
    return f"width {width} ({lora_rules.MODELS_BY_DIM.get(width, 'no released Wan model')})"
