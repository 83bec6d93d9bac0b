"""One module a format of another tool, which reads it and writes it."""
