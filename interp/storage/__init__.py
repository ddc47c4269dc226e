"""How a capture is kept on disk, killed at any moment and gone on with.

May import: what interp.recording may, and interp.recording.
"""
