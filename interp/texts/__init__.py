"""What a model is given to read: texts, planted needles, repeated tokens.

May import: hooks, interp.common.
"""
