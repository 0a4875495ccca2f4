"""Runs the encoders of texts, images and videos, each loaded only as long as it runs."""
