"""Other people's files: checkpoints and LoRAs in every layout that wanpipe reads."""
