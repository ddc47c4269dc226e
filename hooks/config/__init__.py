"""What a model is, as checked values: sizes, rotary schedules, QK-norm, how q and k become a pattern.

May import: hooks.errors, hooks.memory.
"""
