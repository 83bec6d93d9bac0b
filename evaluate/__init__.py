"""Evaluate: replays held-out rows through a transcoder and reports what it keeps, beside other dictionaries."""
