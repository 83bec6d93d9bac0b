"""Feature evidence: what every feature of a transcoder fires on, what it is related to, and what it does."""
