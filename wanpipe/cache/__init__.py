"""What people do with a whole cache: list, explain, verify, collect, export and plan."""
