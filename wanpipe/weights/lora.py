"""Reads the keys of a LoRA file, in any of the field's formats, and matches them to a transformer.

Headers only; `merge` reads the numbers. Every key is used, or ignored with a reason; a file that
changes nothing, or was made for another model, is an error.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import RenameRule, Shape, Transform, match_rules, transformed_shape
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import lora as lora_rules
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError

NO_IMAGE_BRANCH = "of an image branch that this model lacks"
OTHER_INPUT_CHANNELS = "for another number of input channels"
ALPHA_ALONE = "that scale nothing"
UNKNOWN = "unknown"
# parts of a module that change a parameter, by the parameter's last word
PARTS_BY_PARAMETER = {
    "weight": ("down", "up", "alpha", "weight"),
    "bias": ("bias",),
    "modulation": ("modulation",),
}
DIM_INPUTS = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.0)")  # what takes tokens
BLOCK_NAME = re.compile(r"blocks\.(\d{1,6})(\..*)?")
QUERY_WEIGHT = "blocks.{}.self_attn.q.weight"  # tells the width and the layers of our network


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """The tensors of one file: of each module, by its official name, the key of each part.

    `key_formats` counts how its keys are written, such as `diffusion_model.<module>.lora_A.weight`.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)  # key to reason
    key_formats: Counter[str] = field(default_factory=Counter)

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
                return module
            return found[2].lstrip(".") if found[2] else "modulation"

        return dict(Counter(map(kind, self.modules)))

    @property
    def image_branch(self) -> bool:
        """Whether it changes what only Wan2.1 I2V has."""
        return any(re.fullmatch(lora_rules.IMAGE_BRANCH, module) for module in self.modules)


@dataclass(frozen=True, kw_only=True)
class WeightDelta:
    """What a LoRA adds to one parameter: the keys of its parts (`up`, `down` and `alpha` of a
    product, or a full difference by the parameter's last word), and how they become our layout.
    """

    keys: dict[str, str]
    transform: Transform


@dataclass(frozen=True, kw_only=True)
class LoraMatch:
    """A LoRA as it applies to one network: deltas by our parameters, the number of modules changed,
    and the keys that are ignored, by reason.
    """

    path: Path
    deltas: dict[str, WeightDelta]
    modules: int
    ignored: dict[str, list[str]]

    def summary(self) -> str:
        """Tell in words what is applied and what is not."""
        left_out = [
            f"ignored {len(keys)} keys {reason} ({list_names(keys)})"
            for reason, keys in self.ignored.items()
        ]
        return "; ".join([f"applied {self.modules} modules", *left_out])


def read_lora(path: Path) -> LoraFile:
    """Read the header of a LoRA file and sort its keys.

    Raises CheckpointError for a file that cannot be read, that holds another kind of adapter, or
    that gives a tensor twice.
    """
    with open_tensors(path) as file:
        lora = LoraFile(path=path, tensors=file.tensors)
    split = {key: _split_key(key) for key in lora.tensors if not _is_elsewhere(lora, key)}
    names = _official_names({found[:2] for found in split.values() if found})
    for key, found in split.items():
        module = found and names[found[:2]]
        if not found or not module:
            lora.ignored[key] = UNKNOWN
            continue
        parts, part = lora.modules.setdefault(module, {}), found[2]
        if part in parts:
            raise CheckpointError(
                f"{path} gives {quote_name(module)} twice, as {quote_name(parts[part])} and "
                f"{quote_name(key)}; use a file with one LoRA"
            )
        parts[part] = key
        theirs = found[0].replace(".", "_") != module.replace(".", "_")
        lora.key_formats[found[3].replace("<", "<diffusers " if theirs else "<")] += 1
    return lora


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


def _split_key(key: str) -> tuple[str, bool, str, str] | None:
    """Split a key into module (as written, and whether with underscores), part and format."""
    rest = key
    while prefix := next((one for one in lora_rules.DOTTED_PREFIXES if rest.startswith(one)), ""):
        rest = rest.removeprefix(prefix)
    underscored = next((one for one in lora_rules.UNDERSCORED_PREFIXES if rest.startswith(one)), "")
    rest = rest.removeprefix(underscored)
    front = key.removesuffix(rest)
    for pattern, part in lora_rules.KEY_ENDINGS:
        if found := re.fullmatch(f"(?P<module>.+?)(?P<end>{pattern})", rest):
            return found["module"], bool(underscored), part, f"{front}<module>{found['end']}"
    return None


def _official_names(modules: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], str | None]:
    """Map modules as written, with dots or underscores, to their official names."""
    rules = (*lora_rules.DIFFUSERS_RULES, *lora_rules.OFFICIAL_RULES)
    flat = tuple(RenameRule(rule.pattern.replace(".", "_"), rule.target) for rule in rules)
    names: dict[tuple[str, bool], str | None] = {}
    for underscored, table in ((False, rules), (True, flat)):
        written = [module for module, kind in modules if kind == underscored]
        for module, _, target in match_rules(_as_tensors(written), table):
            names[module, underscored] = target
    return names


def _as_tensors(names: Iterable[str]) -> dict[str, TensorInfo]:
    return dict.fromkeys(names, TensorInfo((), "F32", 0))


def match_lora(lora: LoraFile, shapes: Mapping[str, Shape]) -> LoraMatch:
    """Match a LoRA to a transformer whose unquantized parameters have `shapes`.

    Raises CheckpointError where nothing applies, or where it was made for another model.
    """
    ignored: dict[str, list[str]] = {}
    for key, reason in lora.ignored.items():
        ignored.setdefault(reason, []).append(key)
    if QUERY_WEIGHT.format(lora.layers - 1) not in shapes and lora.layers:
        raise _other_model_error(lora, shapes, "")
    deltas: dict[str, WeightDelta] = {}
    changed = set()
    for target, rule, module, keys in _changed_parameters(lora):
        if "alpha" in keys and not lora.rank(module):
            ignored.setdefault(ALPHA_ALONE, []).append(keys.pop("alpha"))
        reason = _reason_to_ignore(lora, shapes, module, target, rule, keys)
        if reason:
            ignored.setdefault(reason, []).extend(keys.values())
        elif keys:
            assert target is not None and rule is not None
            deltas[target] = WeightDelta(keys=keys, transform=rule.transform)
            changed.add(module)
    if not deltas:
        raise CheckpointError(
            f"{lora.path} changes no layer of this model (keys: {list_names(lora.tensors)}); use a "
            "LoRA for Wan"
        )
    return LoraMatch(path=lora.path, deltas=deltas, modules=len(changed), ignored=ignored)


def _changed_parameters(
    lora: LoraFile,
) -> Iterable[tuple[str | None, RenameRule | None, str, dict[str, str]]]:
    """Yield each parameter that is changed: our name and its rule (None if there is none), module,
    keys by part.
    """
    wanted = {
        f"{module}.{leaf}": (module, {part: parts[part] for part in names if part in parts})
        for module, parts in lora.modules.items()
        for leaf, names in PARTS_BY_PARAMETER.items()
    }
    wanted = {name: pair for name, pair in wanted.items() if pair[1]}
    for name, rule, target in match_rules(_as_tensors(wanted), dit_rules.RULES):
        yield target, rule, *wanted[name]


def _reason_to_ignore(
    lora: LoraFile,
    shapes: Mapping[str, Shape],
    module: str,
    target: str | None,
    rule: RenameRule | None,
    keys: dict[str, str],
) -> str:
    """Return why a delta does not apply, or "". Raises CheckpointError for other shapes."""
    if target is None or rule is None or target not in shapes:
        return NO_IMAGE_BRANCH if re.fullmatch(lora_rules.IMAGE_BRANCH, module) else UNKNOWN
    for part in set(keys) - {"alpha", "up"}:
        shape = lora.shape(module, part)
        if part == "down":
            lora.rank(module)
            shape = (lora.shape(module, "up")[0], *shape[1:])
        shape = transformed_shape(shape, rule.transform)
        if shape != shapes[target]:
            if module == "patch_embedding" and shape[0] == shapes[target][0]:
                return OTHER_INPUT_CHANNELS
            detail = f"{quote_name(module)} is {shape}, this model's {shapes[target]}"
            raise _other_model_error(lora, shapes, detail)
    return ""


def _other_model_error(lora: LoraFile, shapes: Mapping[str, Shape], detail: str) -> CheckpointError:
    """Say for which model a LoRA was made, and which this one is."""
    ours = shapes[QUERY_WEIGHT.format(0)][1]
    layers = sum(QUERY_WEIGHT.format(index) in shapes for index in range(len(shapes)))
    theirs = lora.width or ours
    if theirs != ours:
        detail = f"it is for {model_of(theirs)}, this model has {model_of(ours)}"
    elif lora.layers > layers:
        detail = f"it is for transformers of {lora.layers} layers, this model's has {layers}"
    return CheckpointError(
        f"{lora.path} does not fit: {detail}; use a LoRA that was made for this model"
    )


def model_of(width: int) -> str:
    """Name a transformer by its width, and the Wan models that have it."""
    return f"width {width} ({lora_rules.MODELS_BY_DIM.get(width, 'no released Wan model')})"
