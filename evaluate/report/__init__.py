"""What an evaluation leaves to read and to look at."""
