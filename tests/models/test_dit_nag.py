"""NAG in the transformer: cross-attention against the official formula, and whole networks."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import golden, relative_error
from tests.models.official import converted
from tests.models.test_dit import condition, inputs, network
from tests.sampling.test_nag import official
from wanpipe.models.dit import Condition, DiT
from wanpipe.models.dit_blocks import CrossAttention
from wanpipe.models.execution import defer_eval
from wanpipe.sampling.nag import Nag
from wanpipe.weights.load import load_network
from wanpipe.weights.stream import load_streamed

NAG = Nag(scale=11)
TOPICS = ("wan21-t2v/dit", "wan21-i2v/dit")
Numbers = np.ndarray


def guided(model: DiT, topic: str, nag: Nag = NAG) -> Condition:
    """The prompt "a" of a topic, against the prompt "b"."""
    negative = condition(model, topic, "b").text
    return replace(condition(model, topic, "a"), negative=negative, nag=nag)


def attend(q: Numbers, k: Numbers, v: Numbers, heads: int) -> Numbers:
    """Attend with rows (L, D), in float64."""
    q, k, v = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    merged: Numbers = (weights @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)
    return merged


def cross_attention(layer: CrossAttention, x: Numbers, prompt: Condition) -> Numbers:
    """Compute the guided cross-attention of tokens x (L, D) in float64, all padding included."""

    def linear(name: str, rows: Numbers) -> Numbers:
        return rows @ np.array(layer[name].weight, np.float64).T + np.array(layer[name].bias)

    def normed(name: str, rows: Numbers) -> Numbers:
        scale = np.sqrt((rows**2).mean(-1, keepdims=True) + layer[name].eps)
        normal: Numbers = rows / scale * np.array(layer[name].weight, np.float64)
        return normal

    def text(tokens: mx.array) -> Numbers:
        rows = np.array(tokens, np.float64)
        rows = np.concatenate([rows, np.repeat(rows[-1:], layer.text_len - len(rows), axis=0)])
        return attend(q, normed("norm_k", linear("k", rows)), linear("v", rows), layer.heads)

    q = normed("norm_q", linear("q", x))
    assert prompt.negative is not None and prompt.nag is not None
    y = official(text(prompt.text), text(prompt.negative), prompt.nag)
    if prompt.image is not None:
        rows = np.array(prompt.image, np.float64)
        y += attend(
            q, normed("norm_k_img", linear("k_img", rows)), linear("v_img", rows), layer.heads
        )
    return linear("o", y)


@pytest.mark.parametrize("topic", TOPICS)
def test_cross_attention_is_guided_by_the_official_formula(checkpoints: Path, topic: str) -> None:
    model = network(checkpoints, topic)
    prompt, block = guided(model, topic), model.blocks[1]  # type: ignore[index]
    x = np.random.default_rng(5).normal(size=(1, 30, model.config.dim)).astype(np.float32)
    layer = block.cross_attn
    ours = layer(mx.array(x), layer.kv(prompt), defer_eval)
    theirs = cross_attention(layer, x[0].astype(np.float64), prompt)
    assert relative_error(ours[0], theirs) < 5e-6
    plain = layer(mx.array(x), layer.kv(condition(model, topic, "a")), defer_eval)
    assert relative_error(plain, ours) > 0.05


@pytest.mark.parametrize("topic", TOPICS)
def test_a_whole_network_is_guided_in_every_block(
    checkpoints: Path, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(checkpoints, topic)
    x, t, y = inputs(topic, "a")
    prompt = guided(model, topic)
    [ours] = model(x, t, [prompt], y)

    def replaced(layer: CrossAttention, x: mx.array, *_: object) -> mx.array:
        rows = np.array(x, np.float64).reshape(-1, x.shape[-1])
        made = cross_attention(layer, rows, prompt).astype(np.float32)
        return mx.array(made).reshape(x.shape)

    monkeypatch.setattr(CrossAttention, "__call__", replaced)
    [theirs] = model(x, t, [replace(prompt, kv_cache={})], y)
    assert relative_error(ours, theirs) < 5e-6


@pytest.mark.parametrize("topic", TOPICS)
def test_alpha_0_gives_the_bits_without_nag(checkpoints: Path, topic: str) -> None:
    model = network(checkpoints, topic)
    x, t, y = inputs(topic, "a")
    [plain] = model(x, t, [condition(model, topic, "a")], y)
    [kept] = model(x, t, [guided(model, topic, Nag(scale=11, alpha=0))], y)
    assert mx.array_equal(plain, kept)
    [same] = model(x, t, [guided(model, topic, Nag(scale=1))], y)
    assert relative_error(same, plain) < 2e-6


def test_the_pass_of_the_negative_prompt_stays_as_it_is(checkpoints: Path) -> None:
    topic = "wan21-t2v/dit"
    model = network(checkpoints, topic)
    x, t, _ = inputs(topic, "a")
    both = model(x, t, [guided(model, topic), condition(model, topic, "b")])
    [alone], [negative] = (
        model(x, t, [one]) for one in (guided(model, topic), condition(model, topic, "b"))
    )
    assert mx.array_equal(both[0], alone)
    assert mx.array_equal(both[1], negative)


def test_many_tokens_are_guided_in_parts(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = "wan21-t2v/dit"
    model = network(checkpoints, topic)
    x, t, _ = inputs(topic, "a")
    [whole] = model(x, t, [guided(model, topic)])
    monkeypatch.setattr("wanpipe.models.dit_blocks.ffn_chunk", lambda tokens: 3)
    [parts] = model(x, t, [guided(model, topic)])
    assert relative_error(parts, whole) < 1e-6


def test_streamed_blocks_are_guided_too(checkpoints: Path) -> None:
    topic = "wan21-t2v/dit"
    directory, config = converted(checkpoints, "wan21-t2v")
    file = directory / "model.safetensors"
    x, t, _ = inputs(topic, "a")
    resident = load_network(DiT(config.dit), file, mx.float32)
    streamed = load_streamed(DiT(config.dit), file, mx.float32)
    ours, theirs = (model(x, t, [guided(model, topic)])[0] for model in (streamed, resident))
    assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("nag", [None, NAG])
def test_vace_blocks_are_guided_too(checkpoints: Path, nag: Nag | None) -> None:
    directory, config = converted(checkpoints, "wan21-vace")
    model = load_network(DiT(config.dit), directory / "model.safetensors", mx.float32)
    arrays = golden("wan21-vace/dit")
    x, context = mx.array(arrays["a_x"]), mx.array(arrays["a_vace_context"])
    prompt = condition_of(model, arrays["a_context"], arrays["b_context"], nag)
    model(x, arrays["a_t"].tolist(), [prompt], context=context)
    kept = [kv.negative for kv in prompt.kv_cache.values()]
    assert len(kept) == config.dit.layers + config.dit.vace_count
    assert all((pair is None) == (nag is None) for pair in kept)


def condition_of(model: DiT, text: Numbers, negative: Numbers, nag: Nag | None) -> Condition:
    prompt = model.condition(mx.array(text))
    if nag is None:
        return prompt
    return replace(prompt, negative=model.condition(mx.array(negative)).text, nag=nag)
