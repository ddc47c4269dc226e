"""A source (name, Hub id, directory, GGUF file, live model) becomes a Checkpoint; builds no model.

May import: everything below, but not hooks.attached and not hooks.model.
"""
