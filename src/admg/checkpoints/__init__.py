"""Models and their checkpoints: loading by name, the native format, OpenAI's format, and export to diffusers."""
