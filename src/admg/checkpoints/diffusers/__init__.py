"""Export to the library diffusers, and loading of its folders."""
