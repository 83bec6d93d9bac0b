"""One module a metric."""
