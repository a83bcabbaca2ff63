"""Models for admg, which loads them by name: emoji and emoji-x2."""
