"""Which heads, tokens, distances and frequencies moved a metric, by gradient and by doing without.

May import the other analyses' rooms and everything below them.
"""
