"""The VAEs in plain MLX: those of Wan, and the tiny one of TAEHV."""
