"""Transformers modules with our KV pool, attention, linear layers and sampling."""
