"""Harvest: runs a language model over text and commits what a layer's MLP consumes and adds to the cache."""
