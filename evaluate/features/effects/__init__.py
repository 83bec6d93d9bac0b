"""What a feature does: to the logits through the unembedding, and by which neurons of the MLP."""
