"""Train: fits a nested-prefix top-k transcoder to a cache."""
