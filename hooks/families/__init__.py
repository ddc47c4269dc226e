"""One row a model family: how its config.json and its checkpoint's names read in our terms.

May import: what hooks.modules may, and hooks.modules.
"""
