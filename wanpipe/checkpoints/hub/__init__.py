"""Repositories of the Hugging Face Hub: found in its cache on this machine, and downloaded."""
