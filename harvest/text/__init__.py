"""From text to batches of contexts: documents, tokens, packing, the held-out split."""
