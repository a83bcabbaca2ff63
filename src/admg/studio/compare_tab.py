"""The Compare tab: images of two settings, side by side, from the same seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .catalog import Entry
from .commands import sample_command
from .comparing import Comparison, compare
from .fields import by_name, image_fields, sampling_fields
from .jobs import Done
from .pictures import grid
from .sampling import Frame
from .settings import NO_GUIDANCE, Settings, read
from .shared import Studio
from .visits import STREAM, status_of, stop_handler, visitor, with_messages

NOTE = """Label accuracy is measured with the model's own classifier, at its lowest noise level. It is too optimistic
for images that the same classifier has guided; `admg evaluate` can use another one. Diversity is the
root-mean-square difference between the pixels of two images with the same label, with pixel values from 0 to 1."""


class CompareTab:
    """Builds the tab inside the current gr.Tab and connects its events."""

    def __init__(self, studio: Studio):
        self.studio = studio
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                self.lay_out_shared()
            with gr.Column(scale=3, min_width=320):
                self.a, self.picture_a, self.command_a = self.lay_out_side("a", guidance=NO_GUIDANCE)
            with gr.Column(scale=3, min_width=320):
                self.b, self.picture_b, self.command_b = self.lay_out_side("b")
        inputs = [*self.common.values(), *self.a.values(), *self.b.values()]
        outputs = [self.status, self.picture_a, self.picture_b, self.table, self.command_a, self.command_b]
        self.start.click(with_messages(self.run), inputs, outputs, **STREAM)
        self.stop.click(stop_handler(studio.queue), None, None, **STREAM)

    def lay_out_shared(self) -> None:
        self.common = image_fields(self.studio.catalog, self.studio.limits, "compare")
        with gr.Row():
            self.start = gr.Button("Compare", variant="primary", elem_id="compare-start")
            self.stop = gr.Button("Stop", elem_id="compare-stop")
        self.status = gr.Markdown("Ready", elem_id="compare-status")
        self.table = gr.Markdown("", elem_id="compare-table")
        gr.Markdown(NOTE)

    def lay_out_side(self, side: str, **preset: Any) -> tuple[dict[str, Any], Any, Any]:
        gr.Markdown(f"### {side.upper()}")
        fields = sampling_fields(self.studio.catalog.first, self.studio.limits, side, **preset)
        picture = gr.Image(format="png", type="pil", interactive=False, show_label=False, elem_id=f"{side}-image",
                           buttons=["download", "fullscreen"], height=430)  # fmt: skip
        return fields, picture, gr.Code(language="shell", wrap_lines=True, show_label=False, interactive=False)

    def settings(self, values: Any) -> tuple[Settings, Settings]:
        """Return the settings of both sides. Raises ValueError if they are the same, or for values out of range."""
        common = by_name(self.common, values)
        left = by_name(self.a, values[len(common) :])
        right = by_name(self.b, values[len(common) + len(left) :])
        a, b = (read({**common, **side}, self.studio.limits) for side in (left, right))
        if a == b:
            raise ValueError("A and B have the same settings: change one of them")
        return a, b

    def run(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Generate the images of A, then of B, and compare them."""
        a, b = self.settings(values)
        entry = self.studio.catalog[a.model]
        for one in (a, b):  # so that an error in B is reported before A is generated
            one.recipe(entry)
        totals = [len(entry.model.respace(one.spec).diffusion) for one in (a, b)]
        side, last = 0, 0
        for update in self.studio.queue.run(visitor(request), lambda job: compare(entry, a, b, job)):
            changed: dict[Any, Any] = {self.status: status_of(update)}
            if isinstance(update, Frame):
                side, last = (1 if update.number < last else side), update.number
                changed = {(self.picture_a, self.picture_b)[side]: grid(update.x0, "predicted x0")}
                changed[self.status] = f"{'AB'[side]}: {status_of(update, totals[side])}"
            if isinstance(update, Done) and update.result is not None:
                changed |= self.finished(update.result, a, b, entry)
            yield changed

    def finished(self, found: Comparison, a: Settings, b: Settings, entry: Entry) -> dict[Any, Any]:
        return {
            self.picture_a: grid(found.a.result.samples.images, "images"),
            self.picture_b: grid(found.b.result.samples.images, "images"),
            self.table: markdown_table(["", "A", "B"], found.table()),
            self.command_a: sample_command(a, entry), self.command_b: sample_command(b, entry),
        }  # fmt: skip


def markdown_table(headers: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [headers, ["---"] * len(headers), *rows])
