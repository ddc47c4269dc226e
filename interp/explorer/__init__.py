"""The live view: questions answered with arrays, a server and a widget that carry them, one page that asks.

May import: what interp.storage may, and analyses; never recording: what a capture lacks is measured before serving.
"""
