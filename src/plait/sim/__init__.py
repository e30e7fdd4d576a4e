"""The virtual world: a heap of timed events feeds the same core."""
