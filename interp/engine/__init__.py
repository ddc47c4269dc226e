"""Pieces of work done one after another here, or by the workers of a dask cluster; knows nothing of what they do.

May import: hooks, interp.common.
"""
