"""Both VAEs against the official ones, and what streaming promises: order, independence, memory."""

from itertools import zip_longest
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from official import converted

from tests.conftest import golden, relative_error, settings
from tests.models.official import allocated, on_the_cpu
from wanpipe.errors import UsageError
from wanpipe.models import causal_conv, vae
from wanpipe.weights.load import load_network

FOLDERS = {"2.1": "wan21-t2v", "2.2": "wan22-ti2v-5b"}
MODELS = {"2.1": "wan21-i2v", "2.2": "wan22-ti2v-5b"}  # text-to-video models have no encoder
ENCODED = {"2.1": ("1x32x48", "5x32x24", "9x16x32"), "2.2": ("1x64x32", "5x32x48", "9x32x16")}
DECODED = {"2.1": ("1x4x6", "2x4x3", "3x2x4"), "2.2": ("1x2x4", "2x3x2", "3x1x2")}
Halves = tuple[vae.Encoder, vae.Decoder]


def load(checkpoints: Path, version: str, dtype: mx.Dtype) -> Halves:
    directory, model = converted(checkpoints, MODELS[version])
    encoder, decoder = vae.encoder(model.vae), vae.decoder(model.vae)
    load_network(encoder, directory / model.components["vae_encoder"].file, dtype)
    load_network(decoder, directory / model.components["vae"].file, dtype)
    return encoder, decoder


@pytest.fixture(scope="module")
def halves(checkpoints: Path) -> dict[str, Halves]:
    return {version: load(checkpoints, version, mx.float32) for version in MODELS}


def video(version: str, size: str) -> mx.array:
    x = golden(f"{FOLDERS[version]}/vae")[f"enc_{size}_x"]
    return mx.array(x).transpose(1, 2, 3, 0)  # (T, Y, X, C)


def latent(version: str, size: str) -> mx.array:
    return mx.array(golden(f"{FOLDERS[version]}/vae")[f"dec_{size}_z"])


@pytest.mark.parametrize(("version", "size"), [(v, size) for v in MODELS for size in ENCODED[v]])
def test_encode_agrees_with_the_official_code(
    halves: dict[str, Halves], version: str, size: str
) -> None:
    reference = golden(f"{FOLDERS[version]}/vae")[f"enc_{size}_mu"]
    ours = halves[version][0](video(version, size))
    assert ours.dtype == mx.float32
    assert relative_error(ours, reference) <= 1e-5


@pytest.mark.parametrize(("version", "size"), [(v, size) for v in MODELS for size in DECODED[v]])
def test_decode_agrees_with_the_official_code(
    halves: dict[str, Halves], version: str, size: str
) -> None:
    reference = golden(f"{FOLDERS[version]}/vae")[f"dec_{size}_x"]
    pieces = list(halves[version][1].frames(latent(version, size)))
    ours = mx.concatenate(pieces)
    assert [len(piece) for piece in pieces] == [1, 4, 4][: len(pieces)]
    assert ours.dtype == mx.float32
    assert relative_error(ours.transpose(3, 0, 1, 2), reference) <= 1e-5


@pytest.mark.parametrize("version", MODELS)
def test_the_gpu_path_gives_what_the_cpu_path_gives(
    halves: dict[str, Halves], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, x = latent(version, DECODED[version][1]), video(version, ENCODED[version][1])
    encoder, decoder = halves[version]
    cpu = encoder(x), mx.concatenate(list(decoder.frames(z)))
    monkeypatch.setattr(causal_conv, "is_gpu", lambda: True)
    gpu = encoder(x), mx.concatenate(list(decoder.frames(z)))
    assert relative_error(gpu[0], cpu[0]) <= 5e-6
    assert relative_error(gpu[1], cpu[1]) <= 5e-6


@pytest.mark.parametrize("version", MODELS)
def test_latent_constants_are_the_official_ones(version: str) -> None:
    official = settings(f"{FOLDERS[version]}/vae")
    assert np.array_equal(np.float32(vae.MEAN[version]), np.float32(official["mean"]))
    # the official wrapper keeps 1 / std, and what was written down was read back from that
    assert np.allclose(vae.STD[version], official["std"], rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("version", MODELS)
def test_interleaved_decodes_do_not_disturb_each_other(
    halves: dict[str, Halves], version: str
) -> None:
    decoder = halves[version][1]
    one, two = (latent(version, size) for size in DECODED[version][1:])
    alone = [list(decoder.frames(z)) for z in (one, two)]
    mixed: tuple[list[mx.array], list[mx.array]] = ([], [])
    for pair in zip_longest(decoder.frames(one), decoder.frames(two)):
        for pieces, piece in zip(mixed, pair, strict=True):
            if piece is not None:
                pieces.append(piece)
    for ours, reference in zip(mixed, alone, strict=True):
        assert mx.array_equal(mx.concatenate(ours), mx.concatenate(reference))


@pytest.mark.parametrize("version", MODELS)
def test_a_shorter_latent_gives_the_first_frames_of_a_longer_one(
    halves: dict[str, Halves], version: str
) -> None:
    z = latent(version, DECODED[version][2])
    long, short = (list(halves[version][1].frames(part)) for part in (z, z[:, :2]))
    assert mx.array_equal(mx.concatenate(long[:2]), mx.concatenate(short))


@pytest.mark.parametrize("version", MODELS)
def test_frames_past_the_last_group_of_four_are_dropped(
    halves: dict[str, Halves], version: str
) -> None:
    encoder, x = halves[version][0], video(version, ENCODED[version][2])
    assert mx.array_equal(encoder(x[:8]), encoder(x[:5]))
    assert mx.array_equal(encoder(x[:4]), encoder(x[:1]))


def test_a_video_given_in_chunks_encodes_as_the_whole_one(halves: dict[str, Halves]) -> None:
    encoder, x = halves["2.1"][0], video("2.1", "5x32x24")
    grey = mx.concatenate([x[:1], mx.zeros((8, *x.shape[1:]))])
    chunks = (x[:1] if i == 0 else mx.zeros((4, *x.shape[1:])) for i in range(3))
    assert mx.array_equal(encoder.encode(chunks), encoder(grey))


@on_the_cpu
@pytest.mark.parametrize("version", MODELS)
def test_memory_does_not_grow_with_length(halves: dict[str, Halves], version: str) -> None:
    encoder, decoder = halves[version]
    z, x = latent(version, DECODED[version][2]), video(version, ENCODED[version][2])

    def run(length: int) -> None:
        frame = mx.zeros_like(x[:1])
        groups = (frame if i == 0 else mx.repeat(frame, 4, axis=0) for i in range(length))
        mx.eval(encoder.encode(groups))
        for _ in decoder.frames(mx.repeat(z[:, :1], length, axis=1)):
            pass

    latents = 100_000  # bytes
    assert allocated(lambda: run(9)) <= allocated(lambda: run(3)) + latents


@pytest.mark.parametrize("version", MODELS)
def test_computing_in_bfloat16_costs_no_more_than_four_times_its_rounding_of_weights(
    checkpoints: Path, version: str
) -> None:
    z, x = latent(version, DECODED[version][1]), video(version, ENCODED[version][1])

    def outputs(*dtypes: mx.Dtype) -> list[mx.array]:
        encoder, decoder = load(checkpoints, version, dtypes[0])
        for half in (encoder, decoder):
            half.set_dtype(dtypes[-1], lambda dtype: dtype == mx.bfloat16)
        return [encoder(x), mx.concatenate(list(decoder.frames(z)))]

    exact, rounded = outputs(mx.float32), outputs(mx.bfloat16, mx.float32)
    for reference, weights, ours in zip(exact, rounded, outputs(mx.bfloat16), strict=True):
        assert ours.dtype == mx.float32
        assert relative_error(ours, reference) <= 4 * relative_error(weights, reference)


def test_patchify_orders_channel_column_row() -> None:
    x = mx.arange(2 * 2 * 3).reshape(1, 2, 2, 3)  # (T, Y, X, C); value = 6 * row + 3 * column + c
    assert vae.patchify(x, 2).tolist() == [[[[0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]]]]
    assert mx.array_equal(vae.unpatchify(vae.patchify(x, 2), 2), x)


def test_a_convolution_too_large_for_a_backend_is_refused_before_it_is_computed() -> None:
    layer = causal_conv.CausalConv(3, 4)
    with pytest.raises(UsageError, match="at most 1500000000 values, got 1530000000"):
        layer(mx.zeros((4, 8500, 10000, 3)), causal_conv.Past(lazy=True))


def test_bytes_are_the_nearest_and_ties_are_even() -> None:
    ties = ((np.arange(255) + 0.5) / 127.5 - 1).astype(np.float32)
    near = [np.nextafter(ties, np.float32(side)) for side in (-2, 2)]
    values = np.concatenate([ties, *near, np.array([-1, 0, 1], np.float32)])
    exact = np.rint((values + 1) * np.float32(127.5))
    assert np.array_equal(np.array(vae.as_bytes(mx.array(values))), exact.astype(np.uint8))
