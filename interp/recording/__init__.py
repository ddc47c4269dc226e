"""How a capture is made; needs the model.

May import: what interp.analyses may, and interp.analyses.
"""
