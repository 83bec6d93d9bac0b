"""Activations that other tools made, as caches: whose they are is not proved, and every report says so."""
