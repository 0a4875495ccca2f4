"""The velocity of a latent under a prompt: loads the acting expert with its LoRAs, conditions it
once, applies guidance.

Holds one expert at a time. Knows nothing of solvers, entries or keys.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx

from wanpipe.backend.device import compute_dtype, memory_limit, mlx_dtype
from wanpipe.models.dit import Block, Condition, DiT
from wanpipe.pipeline.budget import ExpertNeed
from wanpipe.pipeline.chain import expert_at, sides_at
from wanpipe.pipeline.sources import Prompting
from wanpipe.sampling.guidance import apply_guidance
from wanpipe.store import Store
from wanpipe.weights.load import load_network
from wanpipe.weights.lora import Fit
from wanpipe.weights.merge import merge
from wanpipe.weights.model import Model
from wanpipe.weights.stream import load_streamed

Loras = Mapping[str, Sequence[tuple[Fit, float]]]  # of each expert, with their strengths


class Denoiser:
    """Computes guided velocities of one run or of several with the same prompting.

    `needs` tells of each expert how it is run, `loras` what is added to its weights.
    """

    def __init__(
        self,
        model: Model,
        prompting: Prompting,
        needs: Mapping[str, ExpertNeed],
        loras: Loras,
        store: Store,
    ) -> None:
        self.model, self.prompting, self.needs, self.loras = model, prompting, needs, loras
        self.store = store
        self.dtype = mlx_dtype(compute_dtype(model.config.dtype))
        self.name = ""
        self.network: DiT | None = None
        self.conditions: dict[str, Condition] = {}

    def expert(self, name: str) -> DiT:
        """Return the expert `name`, loading it in place of the one held until now."""
        if self.network is None or self.name != name:
            # frees the other expert before this one is read
            self.network, self.conditions = None, {}
            mx.clear_cache()
            config, path = self.model.config.dit, self.model.checked(name, self.store)
            if self.needs[name].streamed:
                loras, make = self.loras.get(name, ()), lambda: Block(config)
                network = load_streamed(DiT(config), path, self.dtype, make, loras)
            else:
                network = load_network(DiT(config), path, self.dtype)
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
        name = expert_at(self.model.config, timestep)
        network = self.expert(name)
        times = [timestep]
        if self.prompting.first_frame is not None:
            times = [0.0] + [timestep] * (latent.shape[1] - 1)
        conditions = [self.condition(network, side) for side in sides_at(guide_scale)]
        need = self.needs[name]
        turns = [[condition] for condition in conditions] if need.apart else [conditions]
        with memory_limit(need.limit):
            y = self.prompting.condition
            velocities = [one for turn in turns for one in network(latent, times, turn, y)]
            negative = None if guide_scale == 1.0 else velocities[1]
            velocity = apply_guidance(velocities[0], negative, guide_scale)
            mx.eval(velocity)
        return velocity
