"""The transcoder: its arrays, how it selects features, the sparse decode, and its files."""
