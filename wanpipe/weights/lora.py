"""Reads what a LoRA file changes, in any of the field's conventions, and fits it to a transformer.

Headers only; `merge` reads the numbers. Every key is used, or ignored with a reason; a file that
changes nothing, or fits another model, is an error.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import Row, Shape, Transform, matches, transformed
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import lora as rules
from wanpipe.checkpoints.tensors import TensorInfo, listed, shown
from wanpipe.errors import CheckpointError

LACKED = "of an image branch that this model lacks"
OTHER_INPUT = "for another number of input channels"
LONE_ALPHA = "that scale nothing"
UNKNOWN = "unknown"
# last word of a parameter, and the parts of a module that change it
LEAVES = {
    "weight": ("down", "up", "alpha", "weight"),
    "bias": ("bias",),
    "modulation": ("modulation",),
}
WIDE = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.0)")  # what takes tokens
BLOCK = re.compile(r"blocks\.(\d{1,6})(\..*)?")
QUERY = "blocks.{}.self_attn.q.weight"  # tells the width and the layers of our network


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The tensors of one file: of each module, by its official name, the key of each part.

    `forms` counts the ways its keys are written, such as `diffusion_model.<module>.lora_A.weight`.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)  # key to reason
    forms: Counter[str] = field(default_factory=Counter)

    def shape(self, module: str, part: str) -> Shape:
        """Shape of one part of a module."""
        return self.tensors[self.modules[module][part]].shape

    def rank(self, module: str) -> int:
        """Rank of a module's product; 0 where it has none. Raises CheckpointError for half a
        product, or halves that do not fit each other.
        """
        halves = [part for part in ("down", "up") if part in self.modules[module]]
        subject = f"{self.path}: {shown(module)}"
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
                if part in parts and WIDE.fullmatch(module) and len(self.shape(module, part)) == 2:
                    return self.shape(module, part)[1]
        return None

    @property
    def layers(self) -> int:
        """How many blocks a model must have for it."""
        blocks = (BLOCK.fullmatch(module) for module in self.modules)
        return max((int(found[1]) + 1 for found in blocks if found), default=0)

    def kinds(self) -> dict[str, int]:
        """Count the modules by kind: their names without the block that they are in."""

        def kind(module: str) -> str:
            found = BLOCK.fullmatch(module)
            if found is None:
                return module
            return found[2].lstrip(".") if found[2] else "modulation"

        return dict(Counter(map(kind, self.modules)))

    @property
    def image_branch(self) -> bool:
        """Whether it changes what only Wan2.1 I2V has."""
        return any(re.fullmatch(rules.IMAGE_BRANCH, module) for module in self.modules)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a LoRA adds to one parameter: keys of its parts (`up` and `down` of a product with its
    `alpha`, or a full difference by the parameter's last word), and how a difference is laid out.
    """

    keys: dict[str, str]
    transform: Transform


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A LoRA as it applies to one network: changes by our parameters, number of modules changed,
    keys left out by reason.
    """

    path: Path
    changes: dict[str, Change]
    modules: int
    ignored: dict[str, list[str]]

    def summary(self) -> str:
        """Tell in words what is applied and what is not."""
        left_out = [
            f"ignored {len(keys)} keys {reason} ({listed(keys)})"
            for reason, keys in self.ignored.items()
        ]
        return "; ".join([f"applied {self.modules} modules", *left_out])


def read_lora(path: Path) -> Lora:
    """Read the header of a LoRA file and sort its keys.

    Raises CheckpointError for a file that cannot be read, that holds another kind of adapter, or
    that gives a tensor twice.
    """
    with open_tensors(path) as file:
        lora = Lora(path=path, tensors=file.tensors)
    cut = {key: _cut(key) for key in lora.tensors if not _elsewhere(lora, key)}
    names = _official({found[:2] for found in cut.values() if found})
    for key, found in cut.items():
        module = found and names[found[:2]]
        if not found or not module:
            lora.ignored[key] = UNKNOWN
            continue
        parts, part = lora.modules.setdefault(module, {}), found[2]
        if part in parts:
            raise CheckpointError(
                f"{path} gives {shown(module)} twice, as {shown(parts[part])} and {shown(key)}; "
                "use a file with one LoRA"
            )
        parts[part] = key
        theirs = found[0].replace(".", "_") != module.replace(".", "_")
        lora.forms[found[3].replace("<", "<diffusers " if theirs else "<")] += 1
    return lora


def _elsewhere(lora: Lora, key: str) -> bool:
    """Note a key of another network; refuse one of another kind of adapter."""
    for pattern, kind in rules.FOREIGN:
        if re.search(f"{pattern}$", key):
            raise CheckpointError(
                f"{lora.path} is a {kind} adapter ({shown(key)}); use a LoRA, or have it merged "
                "into full differences"
            )
    for pattern, reason in rules.ELSEWHERE:
        if re.fullmatch(pattern, key):
            lora.ignored[key] = reason
            return True
    return False


def _cut(key: str) -> tuple[str, bool, str, str] | None:
    """Cut a key into module (as written, and whether with underscores), part and form."""
    rest = key
    while prefix := next((one for one in rules.DOTTED if rest.startswith(one)), ""):
        rest = rest.removeprefix(prefix)
    underscored = next((one for one in rules.UNDERSCORED if rest.startswith(one)), "")
    rest = rest.removeprefix(underscored)
    front = key.removesuffix(rest)
    for pattern, part in rules.PARTS:
        if found := re.fullmatch(f"(?P<module>.+?)(?P<end>{pattern})", rest):
            return found["module"], bool(underscored), part, f"{front}<module>{found['end']}"
    return None


def _official(modules: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], str | None]:
    """Map modules as written, with dots or underscores, to their official names."""
    rows = (*rules.DIFFUSERS, *rules.OFFICIAL)
    flat = tuple(Row(row.pattern.replace(".", "_"), row.target) for row in rows)
    names: dict[tuple[str, bool], str | None] = {}
    for underscored, table in ((False, rows), (True, flat)):
        written = [module for module, kind in modules if kind == underscored]
        for module, _, target in matches(_named(written), table):
            names[module, underscored] = target
    return names


def _named(names: Iterable[str]) -> dict[str, TensorInfo]:
    return dict.fromkeys(names, TensorInfo((), "F32", 0))


def fit(lora: Lora, shapes: Mapping[str, Shape]) -> Fit:
    """Fit a LoRA to a transformer whose unquantised parameters have `shapes`.

    Raises CheckpointError where nothing applies, or where it was made for another model.
    """
    ignored: dict[str, list[str]] = {}
    for key, reason in lora.ignored.items():
        ignored.setdefault(reason, []).append(key)
    if QUERY.format(lora.layers - 1) not in shapes and lora.layers:
        raise _misfit(lora, shapes, "")
    changes: dict[str, Change] = {}
    changed = set()
    for target, row, module, keys in _parameters(lora):
        if "alpha" in keys and not lora.rank(module):
            ignored.setdefault(LONE_ALPHA, []).append(keys.pop("alpha"))
        reason = _against(lora, shapes, module, target, row, keys)
        if reason:
            ignored.setdefault(reason, []).extend(keys.values())
        elif keys:
            assert target is not None and row is not None
            changes[target] = Change(keys=keys, transform=row.transform)
            changed.add(module)
    if not changes:
        raise CheckpointError(
            f"{lora.path} changes no layer of this model (keys: {listed(lora.tensors)}); use a "
            "LoRA for Wan"
        )
    return Fit(path=lora.path, changes=changes, modules=len(changed), ignored=ignored)


def _parameters(lora: Lora) -> Iterable[tuple[str | None, Row | None, str, dict[str, str]]]:
    """Give each parameter that is changed: our name and its row (None if there is none), module,
    keys by part.
    """
    wanted = {
        f"{module}.{leaf}": (module, {part: parts[part] for part in names if part in parts})
        for module, parts in lora.modules.items()
        for leaf, names in LEAVES.items()
    }
    wanted = {name: pair for name, pair in wanted.items() if pair[1]}
    for name, row, target in matches(_named(wanted), dit_rules.ROWS):
        yield target, row, *wanted[name]


def _against(
    lora: Lora,
    shapes: Mapping[str, Shape],
    module: str,
    target: str | None,
    row: Row | None,
    keys: dict[str, str],
) -> str:
    """Tell why a change cannot apply, or "". Raises CheckpointError for another model's shape."""
    if target is None or row is None or target not in shapes:
        return LACKED if re.fullmatch(rules.IMAGE_BRANCH, module) else UNKNOWN
    for part in set(keys) - {"alpha", "up"}:
        shape = lora.shape(module, part)
        if part == "down":
            lora.rank(module)
            shape = (lora.shape(module, "up")[0], *shape[1:])
        shape = transformed(shape, row.transform)
        if shape != shapes[target]:
            if module == "patch_embedding" and shape[0] == shapes[target][0]:
                return OTHER_INPUT
            detail = f"{shown(module)} is {shape}, this model's {shapes[target]}"
            raise _misfit(lora, shapes, detail)
    return ""


def _misfit(lora: Lora, shapes: Mapping[str, Shape], detail: str) -> CheckpointError:
    """Say for which model a LoRA was made, and which this one is."""
    ours = shapes[QUERY.format(0)][1]
    layers = sum(QUERY.format(index) in shapes for index in range(len(shapes)))
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
    return f"width {width} ({rules.WIDTHS.get(width, 'no released Wan model')})"
