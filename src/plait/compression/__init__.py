"""Makes models smaller: weights of fewer bits, in folders that this engine and others read."""
