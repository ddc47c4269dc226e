"""What the place of a token does: distance, rotary frequency, what keys receive, sinks, loss along the text.

May import: what interp.analyses may.
"""
