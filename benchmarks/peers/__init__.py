"""Other caches, each used as its own documentation recommends."""
