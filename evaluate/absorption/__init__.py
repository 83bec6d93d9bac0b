"""First-letter absorption: the words, their probes, the definition, and the metric that reports it."""
