"""The words: frozen records that every other package speaks. Standard library only."""
