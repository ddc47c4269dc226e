"""What native and attached models share: hook names, caches, tokens, losses, TransformerLens' surface.

May import: what hooks.modules may, and hooks.modules.
"""
