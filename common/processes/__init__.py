"""How processes keep out of one another's way, and what they do when they are told to leave."""
