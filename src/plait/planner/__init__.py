"""Placements: which instances, how parallel, in which roles, for most goodput."""
