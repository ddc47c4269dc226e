"""Figures by subject, their look, and how results show themselves in Jupyter; `interp.plots` is their public face."""
