"""A model's weights and settings audited, layer by layer, with no text at all.

May import: what interp.captures may, and not it.
"""
