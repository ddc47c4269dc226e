"""Words, labels, binning, files and progress: what every room uses and none of them owns.

May import: hooks.
"""
