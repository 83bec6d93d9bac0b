"""The activation cache: rows of (source, target, token, document, position) on disk, as FORMAT.md says."""
