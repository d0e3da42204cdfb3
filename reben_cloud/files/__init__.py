"""Files of this machine: their names, how they are read and written, what is not data."""
