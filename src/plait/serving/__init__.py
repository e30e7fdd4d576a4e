"""The serving core: decides, without clock, socket, tensor or lock."""
