"""The transformer against the official code for every variant; its dtypes, cache and memory."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from msgspec import structs

from tests.conftest import golden, relative_error
from tests.models.official import TOLERANCE, allocated, converted, on_the_cpu
from wanpipe.backend.device import mlx_dtype
from wanpipe.models import dit, dit_blocks, rope
from wanpipe.models import layers as common
from wanpipe.models.dit import Condition, DiT
from wanpipe.weights.load import load_network

EXPERTS = {
    "wan21-t2v/dit": "model",
    "wan21-i2v/dit": "model",
    "wan21-flf2v/dit": "model",
    "wan22-t2v-a14b/dit_high": "high_noise_model",
    "wan22-t2v-a14b/dit_low": "low_noise_model",
    "wan22-i2v-a14b/dit_high": "high_noise_model",
    "wan22-i2v-a14b/dit_low": "low_noise_model",
    "wan22-ti2v-5b/dit": "model",
}
FORWARDS = [
    (topic, name)
    for topic in EXPERTS
    for name in "abcd"
    if not (topic.endswith("low") and name in "cd")
    and not (topic.endswith("5b/dit") and name == "d")
]


@cache
def reference(topic: str) -> dict[str, np.ndarray]:
    return golden(topic)


@cache
def network(checkpoints: Path, topic: str, dtype: str = "float32") -> DiT:
    directory, config = converted(checkpoints, topic.split("/")[0], dtype)
    file = directory / config.components[EXPERTS[topic]].file
    return load_network(DiT(config.dit), file, mlx_dtype(dtype))


def condition(model: DiT, topic: str, name: str) -> Condition:
    clip = reference(topic).get("clip_fea")
    context = mx.array(reference(topic)[f"{name}_context"])
    tokens = None if clip is None else mx.array(np.concatenate(clip))  # of one image, or of two
    return model.condition(context, tokens)


def inputs(topic: str, name: str) -> tuple[mx.array, list[float], mx.array | None]:
    """Return latent, timesteps and appended channels of a forward pass."""
    arrays = reference(topic)
    y = arrays.get(f"{name}_y")
    x, t = mx.array(arrays[f"{name}_x"]), arrays[f"{name}_t"].tolist()
    return x, t, None if y is None else mx.array(y)


def forward(model: DiT, topic: str, name: str) -> mx.array:
    x, t, y = inputs(topic, name)
    return model(x, t, [condition(model, topic, name)], y)[0]


@pytest.mark.parametrize(("topic", "name"), FORWARDS)
def test_forward_matches_the_official_code(checkpoints: Path, topic: str, name: str) -> None:
    out = forward(network(checkpoints, topic), topic, name)
    assert relative_error(out, reference(topic)[f"{name}_out"]) < TOLERANCE


@pytest.mark.parametrize("name", "abc")
def test_timesteps_per_frame_match_official_timesteps_per_token(
    checkpoints: Path, name: str
) -> None:
    topic = "wan22-ti2v-5b/dit"
    model, arrays = network(checkpoints, topic), reference(topic)
    x, t, _ = inputs(topic, name)
    times = [0.0] + t * (x.shape[1] - 1)
    tokens = np.repeat(times, x.shape[2] * x.shape[3] // 4)
    assert np.array_equal(arrays[f"{name}_t_tokt"][0][: len(tokens)], tokens)
    [out] = model(x, times, [condition(model, topic, name)])
    assert relative_error(out, arrays[f"{name}_out_tokt"]) < TOLERANCE


def test_equal_timesteps_for_all_frames_equal_one_timestep(checkpoints: Path) -> None:
    topic = "wan22-ti2v-5b/dit"
    model = network(checkpoints, topic)
    x, t, _ = inputs(topic, "b")
    prompt = condition(model, topic, "b")
    [one], [each] = model(x, t, [prompt]), model(x, t * x.shape[1], [prompt])
    assert relative_error(each, one) < 1e-6


def test_keys_and_values_are_computed_once_per_prompt(checkpoints: Path) -> None:
    topic = "wan21-i2v/dit"
    model = network(checkpoints, topic)
    x, t, y = inputs(topic, "a")
    prompt = condition(model, topic, "a")
    assert not prompt.kv_cache
    [first] = model(x, t, [prompt], y)
    cached = dict(prompt.kv_cache)
    assert sorted(cached) == list(range(model.config.layers))
    [second] = model(x, t, [prompt], y)
    assert all(prompt.kv_cache[index] is cached[index] for index in cached)
    assert np.array_equal(np.array(first), np.array(second))


def test_self_attention_before_the_first_cross_attention_runs_once(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = "wan21-t2v/dit"
    model = network(checkpoints, topic)
    x, t, _ = inputs(topic, "a")
    texts = [condition(model, topic, name) for name in "ab"]
    alone = [np.array(model(x, t, [text])[0]) for text in texts]
    calls, original = [], dit.Block.attend_self
    monkeypatch.setattr(
        dit.Block, "attend_self", lambda *args: (calls.append(args[0]), original(*args))[1]
    )
    together = model(x, t, texts)
    assert len(calls) == 2 * model.config.layers - 1
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, np.array(other))


@pytest.mark.parametrize("count", [2, 5])
def test_the_feed_forward_layer_may_run_in_chunks(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    topic = "wan22-ti2v-5b/dit"
    model = network(checkpoints, topic)
    whole = forward(model, topic, "a")
    monkeypatch.setattr(dit_blocks, "ffn_chunk", lambda tokens: -(-tokens // count))
    assert relative_error(forward(model, topic, "a"), np.array(whole)) < 1e-6


def test_a_lazy_forward_gives_the_same_bits(checkpoints: Path) -> None:
    topic = "wan21-t2v/dit"
    model = network(checkpoints, topic)
    x, t, _ = inputs(topic, "a")
    [lazy] = model(x, t, [condition(model, topic, "a")], lazy=True)
    assert np.array_equal(np.array(lazy), np.array(forward(model, topic, "a")))


@pytest.mark.parametrize("topic", ["wan21-i2v/dit", "wan22-ti2v-5b/dit"])
def test_products_are_bfloat16_and_streams_float32(checkpoints: Path, topic: str) -> None:
    model = network(checkpoints, topic, "bfloat16")
    x, t, y = inputs(topic, "a")
    prompt = condition(model, topic, "a")
    [out] = model(x, t, [prompt], y)
    assert prompt.text.dtype == mx.bfloat16
    assert {x.dtype for kv in prompt.kv_cache.values() for x in kv.arrays} == {mx.bfloat16}
    time, modulation = model.embed_time(t)
    assert time.dtype == modulation.dtype == model.embed_video(x, y).dtype == mx.float32
    assert out.dtype == mx.float32
    assert relative_error(out, reference(topic)["a_out"]) < 2e-2


def test_matrix_products_of_blocks_take_no_float32(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = "wan21-i2v/dit"
    model = network(checkpoints, topic, "bfloat16")
    seen: dict[str, set[mx.Dtype]] = {"attend": set(), "MLP": set()}
    plain = dit_blocks.attend
    monkeypatch.setattr(
        dit_blocks,
        "attend",
        lambda *args: (seen["attend"].update(x.dtype for x in args), plain(*args))[1],
    )
    block, call = model.blocks[0], dit_blocks.MLP.hidden
    monkeypatch.setattr(
        dit_blocks.MLP, "hidden", lambda self, x: (seen["MLP"].add(x.dtype), call(self, x))[1]
    )
    _, modulation = model.embed_time([500.0])
    tokens = mx.random.normal((1, 24, model.config.dim))
    kv = block.cross_attn.kv(condition(model, topic, "a"))
    seen["MLP"].clear()
    stream = dit.Stream(tokens)
    block(stream, modulation, rope.tables((2, 4, 3), 32), kv)
    zero = mx.zeros((1, 1, model.config.dim))
    stream.add_norm(
        zero, zero, plus_one=True, eps=1e-6, dtype=mx.float32
    )  # applies the pending addition
    out = stream.x
    assert seen == {"attend": {mx.bfloat16}, "MLP": {mx.bfloat16}}
    assert out.dtype == mx.float32


def test_sinusoid_is_cosines_then_sines_of_float64_angles() -> None:
    table = np.array(dit.sinusoid([999.0, 0.0], 256))
    assert table.shape == (2, 256)
    angle = 999.0 * 10000.0 ** -(5 / 128)
    assert table[0, 5] == np.float32(np.cos(angle))
    assert table[0, 128 + 5] == np.float32(np.sin(angle))
    assert np.array_equal(table[1], [1.0] * 128 + [0.0] * 128)


def test_attention_in_groups_of_heads_equals_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (mx.random.normal((1, 5, length, 8)) for length in (6, 7, 7))
    monkeypatch.setattr(common, "is_gpu", lambda: True)
    whole = common.attend(q, k, v)
    monkeypatch.setattr(common, "is_metal", lambda: True)
    calls = []
    plain = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda q, *rest, **more: (calls.append(q.shape), plain(q, *rest, **more))[1],
    )
    monkeypatch.setattr(common, "MAX_ATTENTION_FLOPS", 4 * 5 * 6 * 7 * 8 / 2.5)
    assert relative_error(common.attend(q, k, v), np.array(whole)) < 1e-6
    assert [shape[1] for shape in calls] == [1, 2, 2]


@on_the_cpu
def test_memory_does_not_grow_with_the_number_of_blocks(checkpoints: Path) -> None:
    def peak(layers: int) -> int:
        _, tiny = converted(checkpoints, "wan21-t2v")
        config = structs.replace(tiny.dit, ffn_dim=1024, layers=layers)
        model = DiT(config)
        x = mx.random.normal((16, 2, 16, 16))
        prompt = model.condition(mx.random.normal((3, config.text_dim)))
        mx.eval(model.parameters(), model(x, [500.0], [prompt]))
        # the highest of several: where others use the processor, some work is done too soon
        return max(allocated(lambda: mx.eval(model(x, [500.0], [prompt]))) for _ in range(5))

    assert peak(8) < 1.2 * peak(2)
