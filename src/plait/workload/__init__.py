"""Traces, arrivals and lengths, the journal of both worlds, and the result schema they share."""
