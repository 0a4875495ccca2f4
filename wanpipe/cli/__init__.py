"""The command line: options, progress and the entry point. Loads neither MLX nor Zarr."""
