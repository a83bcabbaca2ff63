"""The studio: a page in a browser to sample, edit, compare and train with. It needs Gradio (the extra `studio`)."""

from .limits import Limits
from .server import serving

__all__ = ["Limits", "serving"]
