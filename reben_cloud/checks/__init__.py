"""What is wrong with a root, and with the way to it."""
