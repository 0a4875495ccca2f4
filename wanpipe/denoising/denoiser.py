"""Predicts velocities: loads an expert and its LoRAs, embeds the texts once, and applies guidance.

Holds one expert at a time. Knows nothing of solvers, entries or keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from msgspec import UNSET

from wanpipe.backend.device import compute_dtype, memory_limit, mlx_dtype
from wanpipe.backend.group import ALONE, Group
from wanpipe.backend.token_share import TokenShare
from wanpipe.backend.ways import Way
from wanpipe.denoising.chain import PlannedStep, passes_at
from wanpipe.denoising.conditioning import Conditioning
from wanpipe.denoising.orders import Step
from wanpipe.models.dit import Condition, DiT
from wanpipe.pipeline.budget import ExpertPlan
from wanpipe.sampling.guidance import apply_guidance
from wanpipe.sampling.nag import Nag
from wanpipe.store import Store
from wanpipe.weights import networks
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import merge
from wanpipe.weights.model import Model
from wanpipe.weights.stream import load_streamed

Loras = Mapping[str, Sequence[tuple[LoraMatch, float]]]  # of each expert, with their strengths


class Denoiser:
    """Computes guided velocities under one conditioning at a time, which `take` sets.

    `plans` has the memory plan of each expert, and `loras` has its LoRAs. Every rank of `group` has
    a denoiser, and all compute each velocity together.
    """

    def __init__(
        self,
        model: Model,
        plans: Mapping[str, ExpertPlan],
        loras: Loras,
        store: Store,
        group: Group = ALONE,
    ) -> None:
        self.model, self.plans, self.loras = model, plans, loras
        self.store, self.group = store, group
        self.dtype = mlx_dtype(compute_dtype(model.config.dtype))
        self.name = ""
        self.network: DiT | None = None
        self.conditioning: Conditioning
        self.conditions: dict[str, Condition] = {}
        self.shares: dict[Way, TokenShare] = {}

    def take(self, conditioning: Conditioning) -> None:
        """Compute under another conditioning. A loaded expert stays; what it embedded does not."""
        self.conditioning, self.conditions = conditioning, {}

    def expert(self, name: str) -> DiT:
        """Return the expert `name`. If it is not loaded, load it in place of the other expert."""
        if self.network is None or self.name != name:
            # frees the other expert before this one is read
            self.network, self.conditions = None, {}
            mx.clear_cache()
            self.network, self.name = self.load(name), name
        return self.network

    def load(self, name: str) -> DiT:
        """Load the expert `name` with its LoRAs, or take the one that this process has kept."""
        config, loras = self.model.config.dit, self.loras.get(name, ())
        stay = not self.plans[name].streamed

        def read() -> DiT:
            path = self.model.checked(name, self.store)
            network = load_streamed(DiT(config), path, self.dtype, loras, stay=stay)
            self.add_loras(network, name)
            self.store.report.event("loaded", component=name)
            return network

        if not stay:
            return read()
        added = [(fit.hash, strength) for fit, strength in loras]
        return networks.kept((self.model.hash(name), config, self.dtype, added), read)

    def add_loras(self, network: DiT, name: str) -> None:
        """Add an expert's LoRAs outside of its blocks, which get theirs when they are read, and
        report which of their keys were applied.
        """
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

    def condition(self, network: DiT, text: str, nag: Nag | None = None) -> Condition:
        """Embed the prompt or the negative prompt with the loaded expert, once.

        With `nag`, the negative prompt acts in the attention to the prompt.
        """
        if text not in self.conditions:
            rows = getattr(self.conditioning, text)
            made = network.condition(rows, self.conditioning.clip)
            if text == "prompt" and nag is not None:
                negative = self.condition(network, "negative").text
                made = replace(made, negative=negative, nag=nag)
            self.conditions[text] = made
        return self.conditions[text]

    def context(self, order: Step) -> dict[str, Any]:
        """Return what VACE takes beside the latent: its context, and the scale of a step."""
        if self.conditioning.context is None:
            return {}
        return {"context": self.conditioning.context, "context_scale": order.context_scale}

    def share(self, way: Way) -> TokenShare:
        """Return this device's share of the tokens, which is made once."""
        if way not in self.shares:
            part = self.group
            if way.apart == 2:
                part = ALONE if way.shares == 1 else part.split(way.part(part.rank))
            self.shares[way] = TokenShare(part)
        return self.shares[way]

    def order(self, latent: mx.array, step: PlannedStep) -> Step:
        """Return what the velocity of a latent depends on at a step."""
        scale, nag = step.recipe.material.context_scale, step.recipe.material.nag
        return Step(
            expert=step.expert,
            timesteps=tuple(self.conditioning.timesteps(step.timestep, latent.shape[1])),
            guide_scale=step.guide_scale,
            context_scale=None if scale is UNSET else scale,
            nag=None if nag is UNSET else nag,
            shape=latent.shape,
        )

    def guided(self, latent: mx.array | None, order: Step) -> mx.array:
        """Predict the velocity of rank 0's latent (C, F, H, W), float32, together with the other
        ranks.

        At guidance 1 the pass of the negative prompt is skipped. All ranks return the same.
        """
        network, guide_scale, group = self.expert(order.expert), order.guide_scale, self.group
        texts, plan = passes_at(guide_scale), self.plans[order.expert]
        way = plan.way
        mine = (texts[way.part(group.rank)],) if way.apart == 2 else texts
        share = self.share(way)
        conditions = [self.condition(network, text, order.nag) for text in mine]
        turns = [[condition] for condition in conditions] if plan.sequential_cfg else [conditions]
        with memory_limit(plan.limit):
            latent = group.from_first(latent, order.shape)
            y, context = self.conditioning.condition, self.context(order)
            velocities = [
                one
                for turn in turns
                for one in network(latent, order.timesteps, turn, y, share=share, **context)
            ]
            if way.apart == 2:
                velocities = list(group.gather(velocities[0])[:: way.shares])
            negative = None if guide_scale == 1.0 else velocities[1]
            velocity = apply_guidance(velocities[0], negative, guide_scale)
            mx.eval(velocity)
        return velocity
