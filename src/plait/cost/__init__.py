"""Seconds and bytes of a command: roofline, fitted and table models."""
