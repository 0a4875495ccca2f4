"""Denoising: from a request to the steps of every seed, and to the networks that take them."""
