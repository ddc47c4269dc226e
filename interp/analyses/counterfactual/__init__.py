"""The same q and k under other steps: another schedule, no norm, another order, shifted positions.

May import: what interp.analyses may, and position, patterns.
"""
