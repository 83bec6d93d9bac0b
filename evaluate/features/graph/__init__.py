"""The dictionary as a graph that joins features which fire on the same rows or write alike: clusters, and a map."""
