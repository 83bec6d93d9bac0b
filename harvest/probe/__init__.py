"""The first-letter probe: activations at single words, from which absorption is scored without a language model."""
