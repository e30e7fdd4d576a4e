"""Searches: exact programmes and their approximations, native where it counts, each with a twin in Python."""
