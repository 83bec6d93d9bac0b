"""What lies in a cache, byte by byte, as FORMAT.md says."""
