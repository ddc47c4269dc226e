"""One HTML file on a capture.

May import: what interp.storage may, and interp.storage.
"""
