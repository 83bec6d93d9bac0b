"""Transcoders to and from other tools: what is written is measured on held-out rows, what is read is checked."""
