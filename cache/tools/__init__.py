"""Tools for a cache: numbers about it, verification, repair, compression."""
