"""One process per instance: executes steps, never decides."""
