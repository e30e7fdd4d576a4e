"""Placements: which instances, how parallel, in which roles, so that most requests a device meet their objectives."""
