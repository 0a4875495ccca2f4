"""Many videos at once: the sweep file, its graph of entries, and the cluster that makes it."""
