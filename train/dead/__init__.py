"""Dead features: which ones they are, the auxiliary loss, and how they start again."""
