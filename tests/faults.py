"""Deliberate faults in what keys are made of, as data: what tests/mutants.py applies.

A fault is in the product: a material without a field, a field that is the same for all, a number
that is another. Most change the material of a recipe as it is hashed and stored
(`Recipe.material_dict`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

Values = dict[str, Any]
NONE = "0" * 32  # a hash of nothing


@dataclass
class Material:
    """A fault in the material of a stage, or of all: `change` gives what it is by mistake, from
    what it should be and the recipe.
    """

    change: Callable[[Values, Any], Values]
    stage: str | None = None
    hits: int = 0  # how often it changed something

    def apply(self) -> None:
        """Let every recipe be hashed and stored with the fault."""
        from wanpipe.store.recipe import Recipe

        right: Any = Recipe.__dict__["material_dict"]

        def material_dict(recipe: Any) -> Values:
            values = dict(right.func(recipe))
            if self.stage not in (None, values["stage"]):
                return values
            wrong = self.change(dict(values), recipe)
            self.hits += repr(wrong) != repr(values)
            return wrong

        broken: Any = cached_property(material_dict)
        broken.__set_name__(Recipe, "material_dict")
        Recipe.material_dict = broken  # type: ignore[method-assign]


@dataclass
class Function:
    """A fault in a function or method: `wrap` gives the wrong one for the right one."""

    place: str  # module:name
    wrap: Callable[[Any], Any]
    hits: int = 0

    def apply(self) -> None:
        """Put the wrong function in the place of the right one."""
        module, _, names = self.place.partition(":")
        owner: Any = import_module(module)
        *owners, name = names.split(".")
        for each in owners:
            owner = getattr(owner, each)
        wrong = self.wrap(getattr(owner, name))

        def counted(*arguments: Any, **named: Any) -> Any:
            self.hits += 1
            return wrong(*arguments, **named)

        setattr(owner, name, counted)


@dataclass(frozen=True)
class Text:
    """A fault in the text of a file, which has `old` exactly once; with `more` in others too."""

    file: str
    old: str
    new: str
    more: "tuple[Text, ...]" = ()

    @property
    def edits(self) -> "tuple[Text, ...]":
        """All edits, this one first."""
        return (self, *self.more)


Fault = Material | Function | Text

# every field of every material, with what it is by mistake for all: a value that it could have
FIELDS: dict[str, Values] = {
    "convert": {
        "source": {"config.json": NONE},
        "variant": "wan2.1-i2v-14b-480p",
        "dtype": "float32",
        "quantization": None,
        "defaults": {"fps": 16},
    },
    "encode-text": {
        "t5": NONE,
        "tokenizer": NONE,
        "prompt": [1],
        "negative": [1],
        "text_len": 512,
        "dtype": "float32",
    },
    "encode-image": {
        "vae": NONE,
        "clip": None,
        "pixels": NONE,
        "clip_pixels": None,
        "width": 32,
        "height": 32,
        "num_frames": 5,
        "mode": "i2v",
        "dtype": "float32",
    },
    "denoise": {
        "noise": {"algorithm": "numpy-philox-normal", "seed": 0, "shape": [16, 2, 4, 4]},
        "parent": NONE,
        "expert": NONE,
        "loras": [],
        "text": NONE,
        "image": None,
        "guide_scale": 5.0,
        "solver": {"name": "unipc", "order": 1},
        "timestep": 999.0,
        "sigma": 0.5,
        "sigma_next": 0.25,
        "step_cache": {"method": "easycache", "threshold": 0.05, "warm_up": 2, "since": 0},
        "dtype": "float32",
    },
    "decode": {
        "vae": NONE,
        "step": NONE,
        "tiling": None,
        "trim_first_frames": 0,
        "dtype": "float32",
    },
}
# parts of fields, likewise
PARTS: dict[str, Values] = {
    "noise": {
        "algorithm": "numpy-philox-normal",
        "seed": 0,
        "shape": [16, 2, 4, 4],
        "trim_first_frames": 0,
        "digest": NONE,
    },
    "solver": {"name": "unipc", "order": 1},
    "step_cache": {"threshold": 0.05, "warm_up": 2, "since": 0},
}


def dropped(stage: str, name: str) -> Material:
    """A material without one of its fields."""
    return Material(lambda values, _: {n: v for n, v in values.items() if n != name}, stage)


def constant(stage: str, name: str, value: Any) -> Material:
    """A material with a field that is the same for all."""
    return Material(lambda values, _: values | ({name: value} if name in values else {}), stage)


def part(name: str, inner: str, value: Any) -> Material:
    """A step with a part of a field that is the same for all."""

    def change(values: Values, _: Any) -> Values:
        if inner in (values.get(name) or {}):
            values[name] = values[name] | {inner: value}
        return values

    return Material(change, "denoise")


def with_extra(values: Values, _: Any) -> Values:
    return values | {"more": 1}


def whole_numbers(values: Values, _: Any) -> Values:
    """The numbers without a fraction as integers, which JSON writes otherwise."""
    return {
        name: int(value) if isinstance(value, float) and value == int(value) else value
        for name, value in values.items()
    }


def negative_prompt(values: Values, recipe: Any) -> Values:
    return values | {"text": recipe.inputs["text"]}


def changed_loras(change: Callable[[list[Any]], list[Any]]) -> Material:
    return Material(lambda values, _: values | {"loras": change(values["loras"])}, "denoise")


def swapped(hash_of: Any) -> Any:
    """Hashes of the wrong expert, where there are two."""
    other = {"high_noise_model": "low_noise_model", "low_noise_model": "high_noise_model"}
    return lambda model, name: hash_of(model, other.get(name, name))


def pcg64(_: Any) -> Any:
    from numpy.random import PCG64

    return PCG64


NOISE = "wanpipe/sampling/noise.py"
KEYS = "wanpipe/store/keys.py"
SCHEMA = "wanpipe/store/materials.py"
FAULTS: dict[str, Fault] = {
    **{
        f"{stage}: {name} dropped": dropped(stage, name)
        for stage in FIELDS
        for name in FIELDS[stage]
    },
    **{
        f"{stage}: {name} constant": constant(stage, name, value)
        for stage, fields in FIELDS.items()
        for name, value in fields.items()
    },
    **{
        f"denoise: {inner} of {name} constant": part(name, inner, value)
        for name, parts in PARTS.items()
        for inner, value in parts.items()
    },
    **{f"{stage}: a field more": Material(with_extra, stage) for stage in FIELDS},
    **{
        f"{stage}: another algorithm": Material(
            lambda v, _: v | {"algorithm": v["algorithm"] + 1}, stage
        )
        for stage in FIELDS
    },
    "all: another schema": Material(lambda values, _: values | {"schema": 2}),
    "all: no schema": Material(
        lambda values, _: {n: v for n, v in values.items() if n != "schema"}
    ),
    "all: whole numbers as integers": Material(whole_numbers),
    "denoise: the negative prompt at guidance 1": Material(negative_prompt, "denoise"),
    "denoise: order of LoRAs lost": changed_loras(sorted),
    "denoise: strength of LoRAs lost": changed_loras(
        lambda loras: [[one[0], 1.0] for one in loras]
    ),
    "denoise: content of LoRAs lost": changed_loras(
        lambda loras: [[NONE, one[1]] for one in loras]
    ),
    "denoise: only the first LoRA": changed_loras(lambda loras: loras[:1]),
    "denoise: the hash of the wrong expert": Function("wanpipe.weights.model:Model.hash", swapped),
    "denoise: guidance of the wrong expert": Function(
        "wanpipe.denoising.settings:guide_pair", lambda pair: lambda *given: pair(*given)[::-1]
    ),
    "noise: PCG64 under the name of Philox": Function("numpy.random:Philox", pcg64),
    "noise: another seed": Text(NOISE, "Philox(seed)", "Philox(seed + 1)"),
    "noise: sign of another bit": Text(NOISE, "(words & 0x100) != 0", "(words & 0x200) != 0"),
    "noise: limits cut, not rounded": Text(
        NOISE, "round(short / long * SCALE)", "int(short / long * SCALE)"
    ),
    "noise: tail of the wrong sign": Text(NOISE, "-far if offset", "far if offset"),
    "noise: rejected numbers kept": Text(NOISE, "used[at] = fits", "used[at] = True"),
    "noise: second word not used up": Text(NOISE, "following = at + 2", "following = at + 1"),
    "noise: logarithm of the C library": Text(
        NOISE, "return f - (half - odd)", "return np.log1p(x)"
    ),
    "noise: halves of words exchanged": Text(
        NOISE, 'raw.view("<u4")', 'raw.byteswap().view(">u4")'
    ),
    "keys: guidance as it is written": Text(
        SCHEMA,
        "guide_scale: Annotated[Finite,",
        "guide_scale: Annotated[int | float,",
        (
            Text(
                "wanpipe/denoising/settings.py",
                "return cast(to_builtins(settings))",
                "return settings",
            ),
        ),
    ),
    "keys: strength of LoRAs as it is written": Text(
        SCHEMA,
        "loras: Annotated[list[tuple[Hash, Finite]],",
        "loras: Annotated[list[list[Any]],",
        (Text("wanpipe/denoising/loras.py", "float(strength)", "strength"),),
    ),
    "keys: fields in the order of the code": Text(KEYS, "sort_keys=True", "sort_keys=False"),
    "keys: spaces in the JSON": Text(KEYS, 'separators=(",", ":"), ', ""),
    "keys: another hash": Text(
        KEYS, "xxhash.xxh3_128_hexdigest(canonical", "xxhash.xxh128_hexdigest(b' ' + canonical"
    ),
    "keys: hash of an array's beginning": Text(
        KEYS, "view(np.uint8).data", "view(np.uint8)[:256].data"
    ),
    "models: bfloat16 cut, not rounded": Text(
        "wanpipe/checkpoints/dtypes.py", "rounded += 0x7FFF", "rounded[...] = 0"
    ),
}
