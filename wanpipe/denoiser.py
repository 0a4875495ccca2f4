"""The velocity of a latent under a prompt: loads the acting expert with its LoRAs, conditions it
once, applies guidance.

Holds one expert at a time. Knows nothing of solvers, entries or keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from wanpipe.chain import expert_at
from wanpipe.device import mlx_dtype
from wanpipe.model import Model
from wanpipe.models.dit import Block, Condition, DiT
from wanpipe.sampling.guidance import guided
from wanpipe.store import Store
from wanpipe.weights.load import load_network
from wanpipe.weights.lora import Fit
from wanpipe.weights.merge import merge
from wanpipe.weights.stream import Streamed

Loras = Mapping[str, Sequence[tuple[Fit, float]]]  # of each expert, with their strengths


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What a run is conditioned on, float32: text rows (L, D), and where an image takes part its
    arrays.

    `condition` (20, F, H, W) and `clip` (257, D) are those of I2V, `first_frame` (48, 1, H, W) that
    of TI2V.
    """

    prompt: mx.array
    negative: mx.array
    condition: mx.array | None = None
    clip: mx.array | None = None
    first_frame: mx.array | None = None

    def blend(self, latent: mx.array) -> mx.array:
        """Put the image's latent in place of the first frame where there is one (TI2V)."""
        if self.first_frame is None:
            return latent
        return mx.concatenate([self.first_frame, latent[:, 1:]], axis=1)


class Denoiser:
    """Computes guided velocities of one run or of several with the same prompting."""

    def __init__(
        self, model: Model, prompting: Prompting, dtype: str, store: Store, loras: Loras
    ) -> None:
        self.model, self.prompting, self.dtype, self.store = model, prompting, dtype, store
        self.loras = loras
        self.name = ""
        self.network: DiT | None = None
        self.conditions: dict[str, Condition] = {}

    def expert(self, name: str) -> DiT:
        """Return the expert `name`, loading it in place of the one held until now."""
        if self.network is None or self.name != name:
            # frees the other expert before this one is read
            self.network, self.conditions = None, {}
            mx.clear_cache()
            network = DiT(self.model.config.dit)
            load_network(network, self.model.checked(name, self.store), mlx_dtype(self.dtype))
            self.add_loras(network, name)
            self.network, self.name = network, name
            self.store.report.event("loaded", component=name)
        return self.network

    def add_loras(self, network: DiT, name: str) -> None:
        """Add an expert's LoRAs, and account for every key of them."""
        loras = self.loras.get(name, ())
        merge(network, loras)
        for fit, strength in loras:
            self.store.report.event(
                "lora",
                component=name,
                path=str(fit.path),
                strength=strength,
                applied=fit.modules,
                ignored={reason: len(keys) for reason, keys in fit.ignored.items()},
                text=fit.summary(),
            )

    def condition(self, network: DiT, side: str) -> Condition:
        """Return the embedded prompt or negative prompt of the expert held, computed once."""
        if side not in self.conditions:
            text = self.prompting.prompt if side == "prompt" else self.prompting.negative
            self.conditions[side] = network.condition(text, self.prompting.clip)
        return self.conditions[side]

    def velocity(self, latent: mx.array, timestep: float, guide_scale: float) -> mx.array:
        """Predict the velocity of `latent` (C, F, H, W) in float32; with guidance 1 the negative
        prompt is skipped.
        """
        network = self.expert(expert_at(self.model.config, timestep))
        times = [timestep]
        if self.prompting.first_frame is not None:
            times = [0.0] + [timestep] * (latent.shape[1] - 1)
        sides = ["prompt"] if guide_scale == 1.0 else ["prompt", "negative"]
        conditions = [self.condition(network, side) for side in sides]
        velocities = network(latent, times, conditions, self.prompting.condition)
        return velocities[0] if guide_scale == 1.0 else guided(*velocities, guide_scale)
