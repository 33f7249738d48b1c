"""How fast and how large: whole merges by triune, by other programs and by nothing at all, on models made here.

``python -m benchmarks --help``; what was measured stands in RESULTS.md.
"""
