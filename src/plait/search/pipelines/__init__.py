"""Schedules of training pipelines: how to build, check, time, show and search them.

The words are in `plait.spec.schedule`. `tasks` is the flat form that everything here computes on.
"""
