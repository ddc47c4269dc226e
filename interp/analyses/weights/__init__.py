"""What a model's weights and settings say before any text: wavelengths, schedules, what each head's projections can do.

May import: hooks, interp.common, interp.measure, interp.tensors.
"""
