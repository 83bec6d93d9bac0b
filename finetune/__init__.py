"""Fine-tuning of trained dictionaries inside the language model: from a cache's own tokens to better ones."""
