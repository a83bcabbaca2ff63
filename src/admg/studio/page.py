"""The page of the studio, with its tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .compare_tab import CompareTab
from .edit_tab import EditTab
from .sample_tab import SampleTab
from .shared import Studio
from .train_tab import TrainTab
from .visits import visitor

TITLE = "admg studio"
FONTS = ["system-ui", "sans-serif"]
MONOSPACE = ["ui-monospace", "monospace"]
CSS = """
.image-frame img, .image-container img { image-rendering: pixelated; }
#sample-curve img, #train-curves img { image-rendering: auto; }
footer { display: none !important; }
"""
KEPT_SECONDS = 3600


def build(studio: Studio) -> Any:
    """Return the page as gr.Blocks."""

    def leave(request: gr.Request) -> None:
        studio.leave(visitor(request))

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# {TITLE}")
        for title, tab in {"Sample": SampleTab, "Edit": EditTab, "Compare": CompareTab, "Train": TrainTab}.items():
            with gr.Tab(title):
                tab(studio)
        page.unload(leave)
    return page
