"""The model's parts as nn.Modules with hook points: norms, QK-norm, rotary, attention, blocks.

May import: what hooks.functional may, and hooks.functional.
"""
