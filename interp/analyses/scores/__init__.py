"""The range of scores, observed and proven: bounds, stages, variants, precision.

May import: what interp.analyses may, and position, patterns, counterfactual.
"""
