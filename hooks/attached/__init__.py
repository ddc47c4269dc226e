"""The same hook names on a live transformers model, on its own code and weights.

May import: everything below, but not hooks.loading and not hooks.model.
"""
