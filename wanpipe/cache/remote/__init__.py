"""The remote tier: a cache in an object store, which machines share."""
