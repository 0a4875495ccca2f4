"""The fixtures of tests/checkpoints."""

from tests.checkpoints.conftest import comfy, diffusers, hasty, official

__all__ = ["comfy", "diffusers", "hasty", "official"]
