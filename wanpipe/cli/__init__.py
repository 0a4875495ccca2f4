"""The command line: shared options, sessions, progress. Loads neither MLX nor Zarr."""
