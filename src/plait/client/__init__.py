"""Load generator for any OpenAI-compatible endpoint."""
