"""Matches the keys of a LoRA file to the parameters of a transformer.

Every key is used, or ignored with a reason; a file that changes nothing, or was made for another
model, is an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wanpipe.checkpoints.rename import RenameRule, Shape, Transform, match_rules, transformed_shape
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.tensors import list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.weights.lora import (
    PARTS_BY_PARAMETER,
    UNKNOWN,
    LoraFile,
    as_tensors,
    is_image_branch,
    is_vace,
    model_of,
)

NO_IMAGE_BRANCH = "of an image branch that this model lacks"
IMAGE_BRANCH = "the image branch of Wan2.1 image-to-video"
NO_VACE = "of VACE blocks that this model lacks"
OTHER_INPUT_CHANNELS = "for another number of input channels"
ALPHA_ALONE = "that scale nothing"
QUERY_WEIGHT = "blocks.{}.self_attn.q.weight"  # gives the width and the number of layers


@dataclass(frozen=True, kw_only=True)
class WeightDelta:
    """What a LoRA adds to one parameter: the keys of its parts (`up`, `down` and `alpha` of a
    product, or a full difference by the parameter's last word), how they become our layout, the
    scale of a product without an alpha, and the factors of 8-bit floats by key.
    """

    keys: dict[str, str]
    transform: Transform
    scale: float = 1.0
    factors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoraMatch:
    """A LoRA as it applies to one network: deltas by our parameters, the number of modules changed,
    and the keys that are ignored, by reason. `hash` is the LoRA's content hash, if it was taken.
    """

    path: Path
    deltas: dict[str, WeightDelta]
    modules: int
    ignored: dict[str, list[str]]
    hash: str = ""

    def summary(self) -> str:
        """Tell in words what is applied and what is not."""
        left_out = [
            f"ignored {len(keys)} keys {reason} ({list_names(keys)})"
            for reason, keys in self.ignored.items()
        ]
        return "; ".join([f"applied {self.modules} modules", *left_out])


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
            deltas[target] = WeightDelta(
                keys=keys,
                transform=rule.transform,
                scale=lora.scale_of(module),
                factors={key: lora.factors[key] for key in keys.values() if key in lora.factors},
            )
            changed.add(module)
    for belongs, what in ((is_image_branch, IMAGE_BRANCH), (is_vace, "VACE blocks")):
        if not deltas and lora.modules and all(map(belongs, lora.modules)):
            raise CheckpointError(
                f"{lora.path} changes only {what} ({list_names(lora.modules)}), which this model "
                "lacks; use a LoRA for this model"
            )
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
    for name, rule, target in match_rules(as_tensors(wanted), dit_rules.RULES):
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
        if is_vace(module):
            return NO_VACE
        return NO_IMAGE_BRANCH if is_image_branch(module) else UNKNOWN
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
