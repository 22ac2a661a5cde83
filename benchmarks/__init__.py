"""What a page costs, beside what one would write by hand and beside other caches.

    python -m benchmarks --help

How it is measured, and what came out, stands in docs/benchmarks.md.
"""
