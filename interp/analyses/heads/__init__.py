"""One line a head: summaries, copies, retrieval, and two captures held against each other.

May import: what interp.analyses may, and position, patterns, counterfactual, scores.
"""
