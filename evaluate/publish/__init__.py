"""Giving trained dictionaries away: what a repository of the Hub holds, and the card that says what they are."""
