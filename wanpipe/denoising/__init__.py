"""Denoising: requests, settings, the chain of steps, trajectories, the sampler and LoRAs."""
