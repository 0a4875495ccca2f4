"""Keys of LoRAs: those of every convention find their module, and no key is dropped silently."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.properties import repeatable
from wanpipe.checkpoints.rules import lora as rules
from wanpipe.errors import CheckpointError
from wanpipe.weights.lora import LoraFile, read_lora

# written end of a key, and what it is; the first two are a pair
ENDS = {
    "peft": {".lora_A.weight": "down", ".lora_B.weight": "up"},
    "peft with a name": {".lora_A.default.weight": "down", ".lora_B.default.weight": "up"},
    "kohya": {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"},
    "short": {".lora_A": "down", ".lora_B": "up", ".lora_alpha": "alpha"},
    "diffusers": {".lora.down.weight": "down", ".lora.up.weight": "up"},
    "diffusers of old": {
        "_lora.down.weight": "down",
        "_lora.up.weight": "up",
    },
    "a linear layer": {
        ".lora_linear_layer.down.weight": "down",
        ".lora_linear_layer.up.weight": "up",
    },
    "differences": {".diff": "weight", ".diff_b": "bias", ".diff_m": "modulation"},
}
ROWS = st.sampled_from([*rules.OFFICIAL_RULES, *rules.DIFFUSERS_RULES])
PIECES = st.sampled_from(
    [
        *rules.DOTTED_PREFIXES,
        *rules.UNDERSCORED_PREFIXES,
        *(end for ends in ENDS.values() for end in ends),
        *("blocks.0.", "self_attn.q", "attn1.to_q", "blocks_1_ffn_0", "head", "text_encoder."),
        *("lora_te1_", "vae.", ".dora_scale", ".hada_w1_a", ".lokr_w1", ".oft_blocks", ".", "_"),
    ]
)
WRITTEN = st.lists(PIECES | st.text("ab0._é", max_size=3), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each example is written."""
    return tmp_path_factory.mktemp("keys") / "lora.safetensors"


def read(file: Path, keys: list[str]) -> LoraFile:
    """Read a file that has these keys."""
    save_file({key: np.zeros((1, 1), np.float32) for key in keys}, file)
    return read_lora(file)


@st.composite
def prefixes(draw: st.DrawFn) -> tuple[str, bool]:
    """The front of a key, and whether dots follow as underscores."""
    dotted = draw(st.lists(st.sampled_from(rules.DOTTED_PREFIXES), max_size=2))
    underscored = draw(st.sampled_from(["", *rules.UNDERSCORED_PREFIXES]))
    return "".join(dotted) + underscored, bool(underscored)


@repeatable
@given(
    prefixes(),
    st.lists(st.tuples(ROWS, st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=5),
    st.sampled_from(list(ENDS)),
)
def test_the_keys_of_every_convention_find_their_modules(
    file: Path, prefix: tuple[str, bool], modules: list, convention: str
) -> None:
    front, underscored = prefix
    wanted: dict[str, dict[str, str]] = {}
    for row, i, j in modules:
        numbers = {"i": str(i), "j": str(j)}
        written = row.pattern.format(**numbers)
        written = written.replace(".", "_") if underscored else written
        parts = {part: f"{front}{written}{end}" for end, part in ENDS[convention].items()}
        wanted[row.target.format(**numbers)] = parts
    lora = read(file, [key for parts in wanted.values() for key in parts.values()])
    assert lora.modules == wanted and lora.ignored == {}


@repeatable
@given(st.lists(WRITTEN, max_size=8, unique=True))
def test_every_key_is_understood_or_ignored_with_a_reason_or_the_file_is_refused(
    file: Path, keys: list[str]
) -> None:
    try:
        lora = read(file, keys)
    except CheckpointError as error:
        assert "\n" not in str(error)
        foreign = [
            key for key in keys for end, _ in rules.OTHER_ADAPTERS if re.search(f"{end}$", key)
        ]
        assert foreign or "twice" in str(error)
        return
    understood = [key for parts in lora.modules.values() for key in parts.values()]
    assert sorted([*understood, *lora.ignored]) == sorted(keys)
    assert all(lora.ignored.values())
    assert lora.key_formats.total() == len(understood)
