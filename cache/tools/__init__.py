"""What is done to a whole cache: look at it, check it, repair it, pack it."""
