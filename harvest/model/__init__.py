"""The language model: which one, where its tensors are, how it runs, and the proof."""
