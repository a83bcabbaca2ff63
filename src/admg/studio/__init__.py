"""The studio: a web page for sampling, editing, comparing and training. Requires Gradio (the extra `studio`)."""

from .limits import Limits
from .server import serving

__all__ = ["Limits", "serving"]
