"""A gallery: the runs of a cache as a static web site that opens from the disk."""
