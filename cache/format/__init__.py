"""The bytes of a cache, as FORMAT.md describes them."""
