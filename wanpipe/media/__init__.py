"""Reads and writes image and video files."""
