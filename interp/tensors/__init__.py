"""What a capture holds: q, k and v by stage, the constants of a layer, tokens, statistics.

May import: hooks, interp.common, texts, measure.
"""
