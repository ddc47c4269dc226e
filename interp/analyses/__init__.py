"""What q and k say: each analysis is a question to a CaptureData, answered with a labelled Dataset.

May import: what interp.tensors may, interp.tensors and interp.plots; among its own rooms as listed in each.
"""
