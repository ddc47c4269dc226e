"""Captures on disk: what is planned, written, locked, resumed, checked and read again."""
