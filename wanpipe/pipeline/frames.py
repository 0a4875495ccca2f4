"""Decodes the latent of a step with the VAE, or with a tiny autoencoder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs

from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE, DecodePlan
from wanpipe.pipeline.video_writer import VideoWriter
from wanpipe.runtime.worker import Worker
from wanpipe.store import Draft, Entry, Recipe, Run, Store, material
from wanpipe.weights.model import Model
from wanpipe.weights.tiny_vae import TinyVAE

if TYPE_CHECKING:
    import numpy as np

    from wanpipe.models.vae import vae
    from wanpipe.models.vae.tiny import Decoder as TinyDecoder

# tiling that changes pixels, as keys have it
TILES = {"tile": geometry.TILE, "overlap": geometry.OVERLAP, "margin": geometry.OVERLAP // 8}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoding of a step's latent (C, F, H, W) with a model's VAE, or with a `tiny` one."""

    model: Model
    step: Entry
    run: Run | None
    trim: int
    reference_frames: int  # latent frames of reference images, before those of the video
    tiny: TinyVAE | None = None

    @property
    def component(self) -> str:
        """The network that decodes."""
        return "vae" if self.tiny is None else "vae_tiny"

    @property
    def hash(self) -> str:
        """The content hash of the network that decodes."""
        return self.model.hash("vae") if self.tiny is None else self.tiny.hash

    def plans(self, tiling: str) -> list[DecodePlan]:
        """Return the memory plans that --tiling allows, the best first.

        Raises UsageError for a latent that the VAE cannot decode, and for tiles of a tiny one.
        """
        from wanpipe.backend.device import compute_dtype, is_cuda

        config = self.model.config
        if self.tiny is not None and tiling == "spatial":
            raise UsageError("a tiny VAE decodes whole frames; leave out --tiling spatial")
        frames, height, width = self.size()
        computed = ITEMSIZE[compute_dtype(config.dtype)]
        network = config.vae if self.tiny is None else self.tiny.config
        plans = budget.decode_plans(network, (frames, height, width), computed, is_cuda())
        large = max(height, width) * config.vae.stride[1] > geometry.TILE
        whole = [plan for plan in plans if not plan.tiled]
        tiled = [plan for plan in plans if plan.tiled and large]
        return {"auto": whole + tiled, "none": whole, "spatial": tiled or whole}[tiling]

    def size(self) -> geometry.Triple:
        """Return latent frames, rows and columns (F, H, W). Raises UsageError for another VAE's."""
        config = self.model.config
        if self.step.is_planned:
            assert self.run is not None
            return geometry.latent_shape(*self.run.settings.size, config.vae.stride)
        channels, frames, height, width = self.step.shape("latent")
        if channels != config.vae.z_dim:
            raise UsageError(
                f"step {self.step.key[:8]} was made for another VAE: it has {channels} channels, "
                f"that of {self.model.directory} decodes {config.vae.z_dim}; use the model that "
                "made it"
            )
        return frames - self.reference_frames, height, width

    def recipe(self, plan: DecodePlan) -> Recipe:
        """Return the recipe of the frames, decoded by one plan."""
        from wanpipe.backend.device import compute_dtype

        named = material(
            "decode",
            vae=self.hash,
            step=self.step.key,
            tiling=TILES if plan.tiled else None,
            trim_first_frames=self.trim,
            dtype=compute_dtype(self.model.config.dtype),
        )
        if self.reference_frames:  # else absent, so that keys without references stay the same
            named = structs.replace(named, reference_frames=self.reference_frames)
        if self.tiny is not None:
            named = structs.replace(named, decoder="tiny")
        made = {"model": str(self.model.directory.resolve())}
        return Recipe(material=named, inputs={"step": self.step.key}, made=made)

    def filler(
        self, recipe: Recipe, plan: DecodePlan, store: Store, video: VideoWriter
    ) -> Callable[[Draft], dict[str, Any]]:
        """Return the function that decodes into an entry and a video, slice by slice."""

        def fill(draft: Draft) -> dict[str, Any]:
            from wanpipe.backend.device import memory_limit, provenance

            latent = self.step.published().read("latent")[:, self.reference_frames :]
            stride, trim = self.model.config.vae.stride, 4 * self.trim
            slices = self.slices(latent, recipe.material.dtype, plan, store)
            frames = 4 * (latent.shape[1] - 1) + 1 - trim
            shape = (frames, latent.shape[2] * stride[1], latent.shape[3] * stride[2], 3)
            video.begin(recipe)
            with (
                draft.stream("frames", shape) as sink,
                store.report.task("decode", latent.shape[1]) as task,
                memory_limit(plan.limit),
            ):

                def take(frames: "np.ndarray") -> None:
                    sink.append(frames)
                    video.take(frames)

                take_behind(slices, trim, take, task.advance)
            return {**provenance(), "flops": plan.flops}

        return fill

    def slices(
        self, latent: "np.ndarray", dtype: str, plan: DecodePlan, store: Store
    ) -> "Iterable[np.ndarray]":
        """Yield frames, (T, Y, X, 3) uint8 each."""
        import mlx.core as mx
        import numpy as np

        from wanpipe.models.vae import tiling, vae

        network, z = self.decoder(dtype, store), mx.array(latent)
        if isinstance(network, vae.Decoder):
            if plan.tiled:
                return tiling.decode(network, z, self.model.config.vae.stride[1])
            whole = network.frames(z, plan.at_once)
        else:
            whole = network.frames(z)
        return (np.array(vae.to_uint8(piece)) for piece in whole)

    def decoder(self, dtype: str, store: Store) -> "vae.Decoder | TinyDecoder":
        """Load the decoder, and report it, or take the one that was kept."""
        from wanpipe.backend.device import mlx_dtype
        from wanpipe.models.vae import vae
        from wanpipe.weights import networks
        from wanpipe.weights.load import load_network

        def load() -> "vae.Decoder | TinyDecoder":
            network: vae.Decoder | TinyDecoder
            if self.tiny is not None:
                network = self.tiny.load(mlx_dtype(dtype), store)
            else:
                path = self.model.checked("vae", store)
                network = load_network(vae.Decoder(self.model.config.vae), path, mlx_dtype(dtype))
            store.report.event("loaded", component=self.component)
            return network

        return networks.kept((self.component, self.hash, dtype), load)


def take_behind(
    slices: "Iterable[np.ndarray]",
    trim: int,
    take: "Callable[[np.ndarray], None]",
    advance: Callable[[], object],
) -> None:
    """Call `take` in another thread for each slice (T, Y, X, 3), while the next one is computed.

    The first `trim` frames are dropped.
    """
    with Worker[None]("frames") as worker:
        for pixels in slices:
            dropped = min(trim, len(pixels))
            trim -= dropped
            if len(pixels) > dropped:
                worker.submit(partial(take, pixels[dropped:]))
            worker.wait(1)
            advance()
        worker.wait(0)
