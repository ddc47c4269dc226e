"""Many texts: what is kept of each, where it is kept, and what is said of all of them together.

May import: everything below it, interp.captures among it; nothing but interp.cli may import it.
"""
