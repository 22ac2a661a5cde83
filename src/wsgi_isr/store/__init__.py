"""Where pages are kept: the `Store` protocol, its kinds, and a process's pages over them."""
