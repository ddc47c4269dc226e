"""One exact pass over q and k: every statistic of attention, in memory that grows with the length, not its square.

May import: hooks, interp.common.
"""
