"""The pass on the CPU, compiled: blocks of scores that never leave the cache.

May import: as interp.measure.
"""
