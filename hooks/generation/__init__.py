"""Reading and writing one token after another: what a model keeps of the tokens before, how the next one is chosen.

May import: what hooks.base may, and hooks.base.
"""
