"""Tensors in, tensors out, without TransformerLens: frequencies and rotation, who sees whom, attending.

May import: what hooks.config may, and hooks.config.
"""
