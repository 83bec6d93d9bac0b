"""What each command does and prints: one module a group of commands."""
