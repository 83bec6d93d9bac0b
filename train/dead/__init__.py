"""What is done about dead features: which ones are, the auxiliary loss, and how they begin again."""
