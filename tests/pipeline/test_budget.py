"""What is promised of memory: counted against the graphs, chosen within a limit, kept by MLX."""

import dataclasses
import gc
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from msgspec import structs

from bench.sizes import DITS, HD, T5_XXL, TI2V_HD, VAE_21, VAE_22, WIDE
from bench.weights import Random
from tests import graphs
from tests.graphs import gpu
from tests.models.official import on_the_cpu
from wanpipe.backend import device
from wanpipe.backend.device import memory_limit
from wanpipe.checkpoints.rename import RenameRule, match_rules
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.errors import UsageError
from wanpipe.models import rope, tuning
from wanpipe.models.config import DiTConfig, VAEConfig
from wanpipe.models.dit import Block, DiT, Stream
from wanpipe.models.dit_blocks import KV
from wanpipe.models.geometry import Triple
from wanpipe.models.vae import tiling, vae
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import Expert, MemoryPlan
from wanpipe.runtime.report import Report
from wanpipe.runtime.units import format_si
from wanpipe.sampling.nag import Nag
from wanpipe.store.publish import QUEUE_LIMIT

LONGEST = (512, 512)  # tokens of prompts


def expert(name: str, weights: int = 10**10) -> Expert:
    config, latent = DITS[name]
    return Expert(config=config, bytes=weights, stored=2, computed=2, texts=LONGEST, latent=latent)


def live(one: Expert) -> int:
    """Bytes alive at most in one pass through a block, read off its graph, without its input."""
    config, prefix = one.config, "blocks.{i}."
    rules = [
        RenameRule(rule.pattern, rule.target.removeprefix(prefix), keep_float32=rule.keep_float32)
        for rule in dit_rules.RULES
        if rule.target and rule.target.startswith(prefix)
    ]
    counts = tuple(n // side for n, side in zip(one.latent, config.patch, strict=True))
    width, images = config.dim // config.heads, 2 if config.clip_dim else 0
    with gpu() as tracer:
        block = Block(config)
        negative = 0 if one.nag is None else 2
        kept = [
            mx.zeros((n, config.dim), mx.bfloat16)
            for n in [130] * (2 + negative) + [config.clip_tokens] * images
        ]
        inputs = (mx.zeros((1, one.tokens, config.dim)), mx.zeros((1, 6, config.dim)))

        def run(
            x: mx.array, time: mx.array, cos: mx.array, sin: mx.array, *kept: mx.array
        ) -> mx.array:
            stream = Stream(x)
            pairs: list[Any] = [kept[at : at + 2] for at in range(0, len(kept), 2)]
            other = pairs.pop(1) if negative else None
            kv = KV(*pairs, negative=other, nag=Nag(scale=11))
            block(stream, time, (cos, sin), kv)
            still = mx.zeros((1, 1, config.dim))
            stream.add_norm(still, still, plus_one=True, eps=1e-6, dtype=x.dtype)  # adds what waits
            return stream.x

        tables = rope.tables(counts, width)
        graph = tracer.read_network(block, rules, run, *inputs, *tables, *kept)
    return graphs.memory(graph.operations, graph.outputs).peak


@pytest.mark.parametrize("nag", [None, 130])
@pytest.mark.parametrize("name", DITS)
def test_work_of_a_block_is_what_its_graph_keeps_alive(name: str, nag: int | None) -> None:
    one = dataclasses.replace(expert(name), nag=nag)
    # the graph's peak has the stream after the block in it, the budget every pass's stream; each
    # stretch that is begun ahead takes no more than the block does at its highest, and on CUDA keys
    # and values are copied to be followed by their means
    most = (1 + tuning.eval_depth(one.tokens, one.config.dim)) * live(one) + 2 * one.row
    assert live(one) <= one.work + one.stream <= most


@pytest.mark.parametrize("name", DITS)
def test_stem_and_blocks_are_all_weights_of_a_converted_file(name: str) -> None:
    one = expert(name)
    parameters = dict(tree_flatten(DiT(one.config).parameters()))
    ours = [
        RenameRule(rule.target, rule.target, keep_float32=rule.keep_float32)
        for rule in dit_rules.RULES
        if rule.target
    ]
    full = {name for name, rule, _ in match_rules(parameters, ours) if rule and rule.keep_float32}
    sizes = {
        name: prod(value.shape) * (4 if name in full else 2) for name, value in parameters.items()
    }
    blocks = ("blocks.", "vace_blocks.")
    stem = sum(size for name, size in sizes.items() if not name.startswith(blocks))
    assert one.stem == pytest.approx(stem, rel=0.005)
    whole = expert(name, sum(sizes.values()))
    assert whole.blocks == pytest.approx(sum(sizes.values()) - stem, rel=0.005)


def test_arithmetic_of_a_step_counts_every_product() -> None:
    one = Expert(
        config=DiTConfig(dim=6, ffn_dim=10, heads=1, layers=2, in_dim=4, out_dim=4, text_len=3),
        bytes=1,
        stored=2,
        computed=2,
        texts=(2,),
        latent=(1, 4, 2),
    )
    tokens = 2
    linear = 4 * 36 + 2 * 36 + 2 * 60  # self attention, q and o of cross attention, feed forward
    attention = 2 * 6 * (tokens + 3)
    assert one.flops == 2 * 2 * tokens * (linear + attention)
    config = structs.replace(one.config, vace_layers=(0,), vace_in_dim=96)
    vace = dataclasses.replace(one, config=config)
    # in the one pass, attention to the three tokens of a negative prompt
    nag = dataclasses.replace(one, nag=2)
    assert nag.flops - one.flops == 2 * 2 * tokens * 2 * 6 * 3
    assert nag.kv_cache == 2 * one.kv_cache
    # one block more, with a projection before it and one after it
    assert vace.flops == 3 * 2 * tokens * (linear + attention) + 2 * tokens * 2 * 36


VACE = {"vace_layers": (0, 2), "vace_in_dim": 96}


@on_the_cpu
@pytest.mark.parametrize("more", [{}, VACE], ids=["text", "vace"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("nag", [False, True])
def test_a_step_makes_what_its_plan_tells(
    more: dict[str, Any], sequential: bool, nag: bool
) -> None:
    sizes = {"dim": 64, "ffn_dim": 256, "heads": 2, "text_dim": 32, "text_len": 32}
    config = DiTConfig(**sizes, layers=3, in_dim=16, out_dim=16, **more)
    random = Random(DiT(config), dit_rules.RULES, dtype="F32")
    network = random.fill(DiT(config), mx.float32)
    texts = (20, 32)
    conditions = [network.condition(mx.random.normal((rows, 32))) for rows in texts]
    if nag:
        conditions[0].negative, conditions[0].nag = conditions[1].text, Nag(scale=11)
    latent = (5, 32, 48)
    x, context = (mx.random.normal((channels, *latent)) for channels in (16, 96))
    given = {"context": context} if more else {}
    batches = [[one] for one in conditions] if sequential else [conditions]

    def step() -> None:
        mx.eval([network(x, [500.0], batch, **given) for batch in batches])

    step()
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()  # counts the arrays of NumPy
    step()
    made = mx.get_peak_memory() - before + tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = {"bytes": random.bytes, "stored": 4, "computed": 4}
    one = Expert(config=config, **sizes, texts=texts, latent=latent, nag=32 if nag else None)
    way = next(way for way in one.plans() if way.sequential_cfg is sequential)
    planned = way.peak - way.host - one.stem - one.tables - one.kv_cache - one.blocks
    assert 0.8 * planned < made < 1.2 * planned


def test_vace_is_planned_for() -> None:
    one, plain = expert("vace-14b", 34_700_000_000), expert("14b", 28_950_000_000)
    for need, without in zip(one.plans(), plain.plans(), strict=True):
        streams = 1 if need.sequential_cfg else 2
        context = 96 * 21 * 60 * 104 * 4
        added = streams * one.stream + one.row + context
        if need.streamed:
            added += one.row + 3 * 2 * 5120**2  # three projections among three blocks
        else:
            added += one.blocks - plain.blocks + one.kv_cache // 6  # 8 of 48 blocks
        assert need.peak - without.peak == pytest.approx(added, rel=0.05)
    assert one.host_arrays - plain.host_arrays == context
    references = dataclasses.replace(one, latent=(23, 60, 104))
    assert references.plans()[0].peak > one.plans()[0].peak


def test_three_streamed_blocks_of_vace_are_not_larger_than_planned() -> None:
    for name in ("vace-1.3b", "vace-14b"):
        config, _ = DITS[name]
        sizes = dict.fromkeys(config.block_names, 0)
        for path, value in tree_flatten(DiT(config).parameters()):
            block = ".".join(path.split(".")[:2])
            if block in sizes:
                sizes[block] += 2 * prod(value.shape)
        row = list(sizes.values())
        one = expert(name, sum(row) + expert(name).stem)
        largest = max(sum(row[start : start + 3]) for start in range(len(row) - 2))
        streamed = next(way for way in one.plans() if way.streamed)
        resident = one.plans()[0]
        planned = streamed.peak - one.row - (resident.peak - one.kv_cache - one.blocks)
        assert largest < planned < 1.15 * largest + one.kv_cache / one.block_count


def test_building_a_network_draws_nothing() -> None:
    """Every drawing would be kept as the origin of the next random key."""
    before = mx.random.state[0]
    sizes = {"dim": 12, "ffn_dim": 8, "heads": 1, "layers": 2, "in_dim": 4, "out_dim": 4}
    DiT(DiTConfig(**sizes, clip_dim=8))
    vae.Decoder(VAE_21)
    vae.Encoder(VAE_22)
    assert mx.random.state[0] is before


def test_text_encoder_needs_three_of_its_blocks() -> None:
    blocks = 24 * 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    need = budget.text_plan(T5_XXL, blocks, [512, 130])
    assert 3 * blocks / 24 < need.peak < 1.5e9
    assert need.flops == 642 * blocks


class Heard(Report):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, kind: str, **fields: str) -> None:
        assert kind == "memory"
        self.lines.append(fields["text"])


PLANS = [
    MemoryPlan(peak=11 * 10**9, flops=1.0, largest=10**9),
    MemoryPlan(
        peak=4 * 10**9, flops=1.0, largest=10**9, strategy="blocks are read again and again"
    ),
]


def test_what_fits_is_run_plainly_and_silently() -> None:
    heard = Heard()
    assert budget.choose_plan("model", PLANS, 11 * 10**9, heard) is PLANS[0]
    assert not heard.lines


def test_what_does_not_fit_is_run_another_way_with_one_line() -> None:
    heard = Heard()
    assert budget.choose_plan("model", PLANS, 5 * 10**9, heard) is PLANS[1]
    [line] = heard.lines
    assert line == (
        "model: blocks are read again and again, because the fastest plan needs 11 GB (limit: 5 GB)"
    )


def test_a_limit_that_no_way_keeps_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(UsageError, match=r"model needs 4 GB at this size, more than --memory 2 GB"):
        budget.choose_plan("model", PLANS, 2 * 10**9, Report())


def test_a_device_that_recommends_less_is_tried_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Heard()
    monkeypatch.setattr(device, "recommended_memory", lambda: 2 * 10**9)
    assert budget.choose_plan("model", PLANS, None, heard) is PLANS[1]
    assert heard.lines == [
        "model needs 4 GB at this size, more than the 2 GB that this device recommends"
    ]


def test_mlx_waits_where_its_largest_array_still_keeps_the_promise() -> None:
    one = expert("14b", 28_950_000_000)
    for need in one.plans():
        assert need.limit == need.peak - need.host - one.stream  # float32, 671 MB
    one = dataclasses.replace(expert("1.3b", 2_870_000_000), latent=(1, 60, 104))
    for need in one.plans():
        # whole, where tokens are few: 28 MB
        assert need.limit == need.peak - need.host - one.hidden
    two, single, tiles = budget.decode_plans(VAE_21, WIDE, 2, True)
    # two frames, and three of them as channels: 96 of each
    assert two.peak - two.host - two.limit == 2 * 480 * 832 * 3 * 96 * 2
    assert two.limit > single.limit > tiles.limit > 0


def test_large_frames_are_decoded_one_at_once() -> None:
    def ways(config: VAEConfig, latent: Triple) -> list[tuple[int, bool]]:
        return [(need.at_once, need.tiled) for need in budget.decode_plans(config, latent, 2, True)]

    assert ways(VAE_21, WIDE) == [(2, False), (1, False), (2, True)]
    assert ways(VAE_21, HD) == [(1, False), (2, True)]
    assert ways(VAE_22, TI2V_HD) == [(2, False), (1, False), (2, True)]  # half the sides inside
    plain, _ = budget.decode_plans(VAE_21, HD, 2, True)
    assert plain.strategy == ""
    assert plain.peak < 8e9


def test_a_transformer_is_run_in_four_ways_or_two() -> None:
    two = expert("14b", 28_950_000_000)
    peaks = [need.peak for need in two.plans()]
    assert peaks == sorted(peaks, reverse=True)
    assert [(need.streamed, need.sequential_cfg) for need in two.plans()] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert peaks[0] - peaks[1] == peaks[2] - peaks[3] == two.stream + two.row
    # without guidance there is one pass, and half of the text's keys and values: of all blocks, or
    # of the one at work
    one = dataclasses.replace(two, texts=LONGEST[:1])
    apart = [need.peak for need in two.plans() if need.sequential_cfg]
    halves = (one.kv_cache, one.kv_cache // one.config.layers)
    assert [need.peak + half for need, half in zip(one.plans(), halves, strict=True)] == apart


def test_where_products_are_short_more_stretches_are_under_way() -> None:
    ahead = {name: tuning.eval_depth(expert(name).tokens, expert(name).config.dim) for name in DITS}
    assert ahead["1.3b"] == ahead["ti2v-5b"] == 3
    assert ahead["14b"] == ahead["14b-720p"] == 1


@on_the_cpu
def test_mlx_waits_before_it_exceeds_a_limit() -> None:
    x = mx.random.normal((2**20,))  # 4 MiB
    mx.eval(x)

    def peak() -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval([(x + number).sum() for number in range(128)])
        return mx.get_peak_memory() - before

    gc.collect()  # what earlier tests left is not to be freed in between
    # the highest of several: where others use the processor, what is begun is done too soon
    default, free = mx.get_memory_limit(), max(peak() for _ in range(5))
    with memory_limit(mx.get_active_memory() + x.nbytes):
        limited = peak()
    # the CPU waits for ten operations at a time, so for twenty of its arrays
    assert limited <= 20.5 * x.nbytes < 0.7 * free
    assert mx.get_memory_limit() == default


def plans() -> list[MemoryPlan]:
    """What all stages take at full size."""
    films = budget.decode_plans(VAE_21, HD, 2, True)
    image, text = (
        budget.image_plan(VAE_21, HD, 2, True, 0),
        budget.text_plan(T5_XXL, 10**10, LONGEST),
    )
    return [*expert("14b").plans(), *films, image, text]


def test_host_arrays_count_where_memory_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_unified", lambda: False)
    apart = plans()
    monkeypatch.setattr(device, "is_unified", lambda: True)
    one = plans()
    assert [need.host for need in apart] == [0] * len(apart)
    for with_host, without in zip(one, apart, strict=True):
        assert with_host.host > 0
        assert with_host.peak == without.peak + with_host.host
        assert with_host.limit == without.limit  # which is of MLX's arrays alone


def test_memory_is_one_but_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda in (False, True):
        monkeypatch.setattr(device, "is_cuda", lambda cuda=cuda: cuda)
        assert device.is_unified() is not cuda


def test_steps_that_wait_for_the_disk_count() -> None:
    one = expert("14b-720p")
    latent = 16 * 21 * 90 * 160 * 4
    assert one.host_arrays >= (QUEUE_LIMIT + 1) * 4 * latent  # latent, x0, and two of UniPC
    more = dataclasses.replace(one, arrays=6)
    assert more.host_arrays - one.host_arrays == (QUEUE_LIMIT + 3) * 2 * latent


def test_a_film_in_tiles_counts_what_is_kept_of_it() -> None:
    *_, tiles = budget.decode_plans(VAE_21, HD, 2, True)
    film = 81 * 720 * 1280 * 3
    assert film < tiling.host_bytes(HD, 8) < tiles.host < 2.5 * film


def test_performance_has_these_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_unified", lambda: False)
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text("utf-8")
    files = {"1.3b": (2.87,), "14b": (28.95, 8.75), "14b-720p": (28.95,), "ti2v-5b": (10.14,)}
    for name, sizes in files.items():
        for size in sizes:
            peaks = [format_si(need.peak, "B") for need in expert(name, int(size * 1e9)).plans()]
            assert f"| {' | '.join(peaks)} |" in page
    for config, latent in ((VAE_21, WIDE), (VAE_21, HD), (VAE_22, TI2V_HD)):
        peaks = [format_si(need.peak, "B") for need in budget.decode_plans(config, latent, 2, True)]
        assert f"| {' | '.join(peaks)} |" in page
