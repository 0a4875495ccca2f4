"""The scale of LoRAs: where alpha may be, which modules it is for, and what it does to keys."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from wanpipe.errors import CheckpointError
from wanpipe.models.config import HIGH, LOW, DiTConfig
from wanpipe.models.dit import DiT
from wanpipe.weights.load import parameter_shapes
from wanpipe.weights.lora import count_scales, identities, read_lora
from wanpipe.weights.lora_match import match_lora
from wanpipe.weights.merge import merge

QUERY, KEY = "blocks.0.self_attn.q", "blocks.1.self_attn.k"
DIGEST = "0123456789abcdef" * 2
RANK = 4
Tensors = dict[str, np.ndarray]


def network() -> DiT:
    sizes = {"dim": 64, "ffn_dim": 128, "heads": 2, "layers": 2, "text_dim": 64}
    return DiT(DiTConfig(in_dim=16, out_dim=16, **sizes))


def pair(module: str, prefix: str = "transformer.") -> Tensors:
    random = np.random.default_rng(len(module))
    return {
        f"{prefix}{module}.lora_A.weight": random.standard_normal((RANK, 64), dtype=np.float32),
        f"{prefix}{module}.lora_B.weight": random.standard_normal((64, RANK), dtype=np.float32),
    }


def both() -> Tensors:
    return pair(QUERY) | pair(KEY)


def scales(path: Path) -> dict[str, float]:
    """The factor that each module's product is added with, measured in a network."""
    model, tensors = network(), both()
    before = {QUERY: model.blocks[0].self_attn.q.weight, KEY: model.blocks[1].self_attn.k.weight}
    merge(model, [(match_lora(read_lora(path), parameter_shapes(model)), 1.0)])
    after = {QUERY: model.blocks[0].self_attn.q.weight, KEY: model.blocks[1].self_attn.k.weight}
    measured = {}
    for module in before:
        down, up = (tensors[f"transformer.{module}.lora_{part}.weight"] for part in "AB")
        added = np.array(after[module] - before[module]).ravel()
        product = (up @ down).ravel()
        measured[module] = float(added @ product / (product @ product))
        np.testing.assert_allclose(added, measured[module] * product, atol=1e-5)
    return measured


def adapter(**fields: Any) -> dict[str, str]:
    """The header's metadata as diffusers writes it."""
    config = {f"transformer.{name}": value for name, value in fields.items()}
    return {"lora_adapter_metadata": json.dumps(config), "format": "pt"}


HALF, TWICE = RANK / 2, RANK * 2
METADATA: dict[str, tuple[dict[str, str], tuple[float, float]]] = {
    "none": ({}, (1, 1)),
    "diffusers": (adapter(r=RANK, lora_alpha=HALF, bias="none", target_modules=["q"]), (0.5, 0.5)),
    "one without a prefix": (
        {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": TWICE})},
        (2, 2),
    ),
    "rank-stabilized": (adapter(lora_alpha=6, use_rslora=True), (3, 3)),
    "a pattern": (adapter(lora_alpha=HALF, alpha_pattern={"self_attn.k": TWICE}), (0.5, 2)),
    "an escaped pattern": (
        adapter(lora_alpha=HALF, alpha_pattern={r"^blocks\.1\.self_attn\.k": 1}),
        (0.5, 0.25),
    ),
    "a pattern for any front": (
        adapter(lora_alpha=HALF, alpha_pattern={r".*\.self_attn\.k$": TWICE}),
        (0.5, 2),
    ),
    "the first pattern of two": (
        adapter(lora_alpha=HALF, alpha_pattern={"k": TWICE, "self_attn.k": 1}),
        (0.5, 2),
    ),
    "the end of a word is no pattern": (
        adapter(lora_alpha=HALF, alpha_pattern={"attn.q": TWICE}),
        (0.5, 0.5),
    ),
    "flat": ({"lora_alpha": "8", "r": "4"}, (2, 2)),
    "flat and rank-stabilized": ({"lora_alpha": "8", "use_rslora": "True"}, (4, 4)),
    # kohya writes alpha tensors; what was converted has the scale in its weights
    "kohya's notes": ({"ss_network_alpha": "1", "ss_network_dim": "4"}, (1, 1)),
}


@pytest.mark.parametrize("kind", METADATA)
def test_the_metadata_of_the_header_scale_every_product(tmp_path: Path, kind: str) -> None:
    metadata, (query, key) = METADATA[kind]
    path = tmp_path / "lora.safetensors"
    save_file(both(), path, metadata)
    assert scales(path) == pytest.approx({QUERY: query, KEY: key}, abs=1e-6)
    changed = identities(read_lora(path), DIGEST) != {None: DIGEST}
    assert changed == ((query, key) != (1, 1)), "a key changes if and only if the result does"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "style.safetensors"])
def test_the_config_of_peft_beside_its_file_counts(tmp_path: Path, name: str) -> None:
    tensors = {name.replace("transformer.", "base_model.model."): a for name, a in both().items()}
    save_file(tensors, tmp_path / name)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "alpha_pattern": {KEY: 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": None}))
    assert scales(tmp_path / name) == pytest.approx({QUERY: 0.25, KEY: 2}, abs=1e-6)
    counts = count_scales(read_lora(tmp_path / name))
    assert counts == {"0.25 (adapter_config.json)": 1, "2 (adapter_config.json)": 1}


def test_a_config_among_other_loras_is_not_theirs(tmp_path: Path) -> None:
    for name in ("style.safetensors", "other.safetensors"):
        save_file(both(), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1}')
    assert scales(tmp_path / "style.safetensors") == pytest.approx({QUERY: 1, KEY: 1}, abs=1e-6)


def test_an_alpha_tensor_goes_before_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    alpha = {f"transformer.{QUERY}.alpha": np.array(1, np.float32)}
    save_file(both() | alpha, path, adapter(lora_alpha=8))
    assert scales(path) == pytest.approx({QUERY: 0.25, KEY: 2}, abs=1e-6)
    assert count_scales(read_lora(path)) == {
        "0.25 (alpha tensors)": 1,
        "2 (lora_adapter_metadata)": 1,
    }


REFUSED = {
    "NaN": ({"lora_adapter_metadata": '{"lora_alpha": NaN}'}, "describe no LoRA"),
    "words": ({"lora_alpha": "much"}, "describe no LoRA"),
    "huge": ({"lora_alpha": "1e30"}, "describe no LoRA"),
    "a list": ({"lora_adapter_metadata": "[1]"}, "describe no LoRA"),
    "nested": ({"lora_adapter_metadata": "[" * 100_000}, "describe no LoRA"),
    "DoRA": (adapter(lora_alpha=1, use_dora=True), "describes a DoRA adapter"),
    "LoHa": (adapter(lora_alpha=1, peft_type="LOHA"), "describes a LOHA adapter"),
    "a regular expression": (
        adapter(lora_alpha=1, alpha_pattern={"(a+)+b": 1}),
        r"alpha_pattern must have names of modules, got \(a\+\)\+b",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_metadata_that_cannot_be_are_refused(tmp_path: Path, kind: str) -> None:
    metadata, says = REFUSED[kind]
    path = tmp_path / "lora.safetensors"
    save_file(both(), path, metadata)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_lora(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"[]", b'{"lora_alpha": "1"}', b'{"lora_alpha": NaN}'])
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, data: bytes) -> None:
    save_file(both(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"adapter_config.json describes no LoRA"):
        read_lora(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("transformer.", "transformer_2."),
        ("diffusion_model.", "diffusion_model_2."),
        ("lora_transformer_", "lora_transformer_2_"),
        ("pipe.dit.", "pipe.dit2."),
    ],
)
def test_each_half_of_a_file_is_for_its_own_expert(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "lora.safetensors"
    flat = first.startswith("lora")
    names = [name.replace(".", "_") if flat else name for name in (QUERY, KEY)]
    config = {"transformer.lora_alpha": RANK, "transformer_2.lora_alpha": HALF}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file(pair(names[0], first) | pair(names[1], second), path, metadata)
    whole, shapes = read_lora(path), parameter_shapes(network())
    assert not whole.ignored
    high, low = (match_lora(whole.of(expert), shapes) for expert in (HIGH, LOW))
    assert (set(high.deltas), set(low.deltas)) == ({f"{QUERY}.weight"}, {f"{KEY}.weight"})
    assert (whole.of(HIGH).scale_of(QUERY), whole.of(LOW).scale_of(KEY)) == (1, 0.5)
    keys = identities(whole, DIGEST)
    assert keys[HIGH] == DIGEST, "0.1.0 gave the first half to the high-noise expert too"
    assert keys[LOW] != DIGEST


def test_underscores_may_end_at_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(pair("blocks_1.self_attn.k", "lora_unet_"), path)
    lora = read_lora(path)
    assert set(lora.modules) == {KEY}
    assert identities(lora, DIGEST) != {None: DIGEST}, "0.1.0 left such keys out"


def test_8_bit_floats_are_multiplied_with_their_scales(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    ones = {
        f"transformer.{QUERY}.lora_A.weight": mx.ones((RANK, 64)),
        f"transformer.{QUERY}.lora_B.weight": mx.ones((64, RANK)),
    }
    tensors = {name: mx.to_fp8(array) for name, array in ones.items()}
    header, body = {}, b""
    for name, array in tensors.items():
        data = np.array(array).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F8_E4M3", "shape": array.shape, "data_offsets": offsets}
        body += data
    scale = np.array(0.5, np.float32).tobytes()
    offsets = [len(body), len(body) + 4]
    name = f"transformer.{QUERY}.lora_A.scale_weight"
    header[name] = {"dtype": "F32", "shape": [], "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body + scale)
    lora, model = read_lora(path), network()
    before = model.blocks[0].self_attn.q.weight
    merge(model, [(match_lora(lora, parameter_shapes(model)), 1.0)])
    added = model.blocks[0].self_attn.q.weight - before
    np.testing.assert_allclose(np.array(added), 0.5 * RANK, atol=1e-5)
    assert not lora.ignored
    assert identities(lora, DIGEST) != {None: DIGEST}


def test_a_lora_of_the_image_branch_alone_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(pair("blocks.0.cross_attn.k_img") | pair("img_emb.proj.1"), path)
    says = "changes only the image branch of Wan2.1 image-to-video"
    with pytest.raises(CheckpointError, match=says):
        match_lora(read_lora(path), parameter_shapes(network()))
