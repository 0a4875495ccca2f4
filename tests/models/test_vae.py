"""Both VAEs against the official code, and chunked coding: order, independence and memory."""

from itertools import zip_longest
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from official import converted

from tests.conftest import golden, relative_error, settings
from tests.models.official import allocated, on_the_cpu
from wanpipe.errors import UsageError
from wanpipe.models.vae import causal_conv, vae
from wanpipe.weights.load import load_network

FOLDERS = {"2.1": "wan21-t2v", "2.2": "wan22-ti2v-5b"}
MODELS = {"2.1": "wan21-i2v", "2.2": "wan22-ti2v-5b"}  # text-to-video models have no encoder
ENCODED = {"2.1": ("1x32x48", "5x32x24", "9x16x32"), "2.2": ("1x64x32", "5x32x48", "9x32x16")}
DECODED = {"2.1": ("1x4x6", "2x4x3", "3x2x4"), "2.2": ("1x2x4", "2x3x2", "3x1x2")}
VAE = tuple[vae.Encoder, vae.Decoder]


def load(checkpoints: Path, version: str, dtype: mx.Dtype) -> VAE:
    directory, model = converted(checkpoints, MODELS[version])
    encoder, decoder = vae.Encoder(model.vae), vae.Decoder(model.vae)
    load_network(encoder, directory / model.components["vae_encoder"].file, dtype)
    load_network(decoder, directory / model.components["vae"].file, dtype)
    return encoder, decoder


@pytest.fixture(scope="module")
def vaes(checkpoints: Path) -> dict[str, VAE]:
    return {version: load(checkpoints, version, mx.float32) for version in MODELS}


def video(version: str, size: str) -> mx.array:
    x = golden(f"{FOLDERS[version]}/vae")[f"enc_{size}_x"]
    return mx.array(x).transpose(1, 2, 3, 0)  # (T, Y, X, C)


def latent(version: str, size: str) -> mx.array:
    return mx.array(golden(f"{FOLDERS[version]}/vae")[f"dec_{size}_z"])


@pytest.mark.parametrize(("version", "size"), [(v, size) for v in MODELS for size in ENCODED[v]])
def test_encoding_matches_the_official_code(vaes: dict[str, VAE], version: str, size: str) -> None:
    reference = golden(f"{FOLDERS[version]}/vae")[f"enc_{size}_mu"]
    ours = vaes[version][0](video(version, size))
    assert ours.dtype == mx.float32
    assert relative_error(ours, reference) <= 1e-5


@pytest.mark.parametrize(("version", "size"), [(v, size) for v in MODELS for size in DECODED[v]])
def test_decoding_matches_the_official_code(vaes: dict[str, VAE], version: str, size: str) -> None:
    reference = golden(f"{FOLDERS[version]}/vae")[f"dec_{size}_x"]
    pieces = list(vaes[version][1].frames(latent(version, size)))
    ours = mx.concatenate(pieces)
    assert [len(piece) for piece in pieces] == [1, 4, 4][: len(pieces)]
    assert ours.dtype == mx.float32
    assert relative_error(ours.transpose(3, 0, 1, 2), reference) <= 1e-5


@pytest.mark.parametrize("version", MODELS)
def test_the_gpu_path_matches_the_cpu_path(
    vaes: dict[str, VAE], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, x = latent(version, DECODED[version][1]), video(version, ENCODED[version][1])
    encoder, decoder = vaes[version]
    cpu = encoder(x), mx.concatenate(list(decoder.frames(z)))
    monkeypatch.setattr(causal_conv, "is_gpu", lambda: True)
    gpu = encoder(x), mx.concatenate(list(decoder.frames(z)))
    assert relative_error(gpu[0], cpu[0]) <= 5e-6
    assert relative_error(gpu[1], cpu[1]) <= 5e-6


@pytest.mark.parametrize("version", MODELS)
def test_mean_and_std_of_latents_match_the_official_code(version: str) -> None:
    official = settings(f"{FOLDERS[version]}/vae")
    assert np.array_equal(np.float32(vae.MEAN[version]), np.float32(official["mean"]))
    # the official wrapper stores 1 / std, and the fixture was computed from that
    assert np.allclose(vae.STD[version], official["std"], rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("version", MODELS)
def test_interleaved_decodes_are_independent(vaes: dict[str, VAE], version: str) -> None:
    decoder = vaes[version][1]
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
def test_a_prefix_of_a_latent_decodes_to_the_first_frames(
    vaes: dict[str, VAE], version: str
) -> None:
    z = latent(version, DECODED[version][2])
    long, short = (list(vaes[version][1].frames(part)) for part in (z, z[:, :2]))
    assert mx.array_equal(mx.concatenate(long[:2]), mx.concatenate(short))


@pytest.mark.parametrize("version", MODELS)
def test_frames_after_the_last_group_of_four_are_dropped(
    vaes: dict[str, VAE], version: str
) -> None:
    encoder, x = vaes[version][0], video(version, ENCODED[version][2])
    assert mx.array_equal(encoder(x[:8]), encoder(x[:5]))
    assert mx.array_equal(encoder(x[:4]), encoder(x[:1]))


def test_encoding_chunks_equals_encoding_the_whole_video(vaes: dict[str, VAE]) -> None:
    encoder, x = vaes["2.1"][0], video("2.1", "5x32x24")
    gray = mx.concatenate([x[:1], mx.zeros((8, *x.shape[1:]))])
    chunks = (x[:1] if i == 0 else mx.zeros((4, *x.shape[1:])) for i in range(3))
    assert mx.array_equal(encoder.encode(chunks), encoder(gray))


@on_the_cpu
@pytest.mark.parametrize("version", MODELS)
def test_memory_does_not_grow_with_the_length_of_the_video(
    vaes: dict[str, VAE], version: str
) -> None:
    encoder, decoder = vaes[version]
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
def test_bfloat16_errs_at_most_four_times_as_much_as_its_rounded_weights(
    checkpoints: Path, version: str
) -> None:
    z, x = latent(version, DECODED[version][1]), video(version, ENCODED[version][1])

    def outputs(*dtypes: mx.Dtype) -> list[mx.array]:
        encoder, decoder = load(checkpoints, version, dtypes[0])
        for network in (encoder, decoder):
            network.set_dtype(dtypes[-1], lambda dtype: dtype == mx.bfloat16)
        return [encoder(x), mx.concatenate(list(decoder.frames(z)))]

    exact, rounded = outputs(mx.float32), outputs(mx.bfloat16, mx.float32)
    for reference, weights, ours in zip(exact, rounded, outputs(mx.bfloat16), strict=True):
        assert ours.dtype == mx.float32
        assert relative_error(ours, reference) <= 4 * relative_error(weights, reference)


def test_patchify_orders_channel_column_row() -> None:
    x = mx.arange(2 * 2 * 3).reshape(1, 2, 2, 3)  # (T, Y, X, C); value = 6 * row + 3 * column + c
    assert vae.patchify(x, 2).tolist() == [[[[0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]]]]
    assert mx.array_equal(vae.unpatchify(vae.patchify(x, 2), 2), x)


def test_a_convolution_too_large_for_a_backend_is_refused() -> None:
    layer = causal_conv.CausalConv(3, 4)
    with pytest.raises(UsageError, match="at most 1500000000 values, got 1530000000"):
        layer(mx.zeros((4, 8500, 10000, 3)), causal_conv.CausalCache(lazy=True))


def test_to_uint8_rounds_to_nearest_and_ties_to_even() -> None:
    ties = ((np.arange(255) + 0.5) / 127.5 - 1).astype(np.float32)
    near = [np.nextafter(ties, np.float32(side)) for side in (-2, 2)]
    values = np.concatenate([ties, *near, np.array([-1, 0, 1], np.float32)])
    exact = np.rint((values + 1) * np.float32(127.5))
    assert np.array_equal(np.array(vae.to_uint8(mx.array(values))), exact.astype(np.uint8))
