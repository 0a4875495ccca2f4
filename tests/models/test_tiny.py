"""The decoder of TAEHV against the reference, and its stream of frames."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import golden, relative_error
from tests.models.official import allocated, on_the_cpu
from tests.tiny_vae import KINDS, NARROW, WIDTHS, draw_latent, draw_weights, write_tiny_vae
from wanpipe.models.vae import causal_conv, tiny
from wanpipe.store import Store
from wanpipe.weights.tiny_vae import open_tiny_vae


def load(folder: Path, kind: str, widths: tuple[int, ...] = NARROW) -> tiny.Decoder:
    """A decoder with the weights that were drawn for the reference, if the widths are the real."""
    path = write_tiny_vae(folder / f"{kind}.safetensors", draw_weights(kind, widths))
    store = Store(folder / "cache")
    return open_tiny_vae(path, KINDS[kind][0], store).load(mx.float32, store)


def decode(network: tiny.Decoder, latent: np.ndarray) -> np.ndarray:
    """All frames (T, Y, X, 3) of a latent (C, F, H, W), in [-1, 1]."""
    return np.concatenate([np.array(piece) for piece in network.frames(mx.array(latent))])


def drawn(kind: str, frames: int, seed: int = 5) -> np.ndarray:
    shape = (KINDS[kind][0], frames, 3, 4)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    """Both compute in float32, the sums in another order: values in [0, 1] differ by 1e-6."""
    frames = golden(f"tiny-vae/{kind}")["frames"]
    ours = (decode(load(tmp_path, kind, WIDTHS), draw_latent(kind)) + 1) / 2
    assert ours.shape == frames.shape
    assert frames.std() > 0.2  # else any gray would do
    assert np.abs(ours - frames).max() <= 1e-5


def test_four_frames_are_made_of_a_latent_frame_and_one_of_the_first(tmp_path: Path) -> None:
    pieces = list(load(tmp_path, "taew2_1").frames(mx.array(drawn("taew2_1", 3))))
    assert [piece.shape for piece in pieces] == [(1, 24, 32, 3), (4, 24, 32, 3), (4, 24, 32, 3)]


def test_frames_depend_on_earlier_latent_frames_alone(tmp_path: Path) -> None:
    network, latent = load(tmp_path, "taew2_1"), drawn("taew2_1", 4)
    whole = decode(network, latent)
    assert np.array_equal(decode(network, latent[:, :2]), whole[:5])
    latent[:, 1] += 1
    changed = decode(network, latent)
    assert np.array_equal(changed[:1], whole[:1])
    assert not np.array_equal(changed[5:9], whole[5:9])  # the memory of the frame before


def test_a_stream_is_the_whole_clip_at_once(tmp_path: Path) -> None:
    """Blocks take all frames together, as the reference does with `parallel`."""
    network, latent = load(tmp_path, "taew2_2"), drawn("taew2_2", 3)
    z = 3 * mx.tanh(mx.array(latent).transpose(1, 2, 3, 0) / 3)
    together = network.chunk(z, causal_conv.CausalCache())[tiny.LEAD :]
    assert relative_error(decode(network, latent), together) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_path_matches_the_cpu_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, latent = load(tmp_path, kind), drawn(kind, 2)
    cpu = decode(network, latent)
    monkeypatch.setattr(causal_conv, "is_gpu", lambda: True)
    assert relative_error(decode(network, latent), cpu) <= 5e-6


@on_the_cpu
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    network = load(tmp_path, "taew2_1")

    def peak(frames: int) -> int:
        latent = mx.array(drawn("taew2_1", frames))
        mx.eval(latent)

        def work() -> None:
            for _ in network.frames(latent):
                pass

        work()
        return allocated(work) - 2 * latent.nbytes  # as read, and as clamped

    assert peak(30) <= 1.05 * peak(4)
