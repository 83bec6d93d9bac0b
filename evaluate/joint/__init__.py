"""Dictionaries of several layers, measured together on the same rows: cross-layer transcoders and per-layer sets."""
