"""Windows into the pattern itself: rows, keys, pooled maps.

May import: what interp.analyses may.
"""
