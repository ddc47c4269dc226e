"""What happens to scores while a model trains.

May import: what interp.recording may, and interp.recording.
"""
