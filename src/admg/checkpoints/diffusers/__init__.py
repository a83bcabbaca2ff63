"""Export to the library diffusers."""
