"""The Train tab: shows the run directories of a folder, and starts training runs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .charts import log_chart
from .runs import NewRun, RunFolder, Trainer, read_picture
from .shared import Studio
from .visits import QUICK, STREAM, with_messages

EVERY = 2.0
"""Refresh interval in seconds."""
NO_RUNS = "To watch training runs here, start the studio with the folder that contains them: `admg studio --runs DIR`."
NO_DATA = "To start training runs here, add a folder of data sets: `admg studio --runs DIR --data DIR`."


class TrainTab:
    """Builds the tab inside the current gr.Tab and connects its events."""

    def __init__(self, studio: Studio):
        if studio.runs is None:
            gr.Markdown(NO_RUNS, elem_id="train-none")
            return
        self.runs: RunFolder = studio.runs
        self.trainer = studio.trainer
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                names = self.runs.names()
                # Custom values: a refresh that began before a run was started may remove it from the choices.
                self.chosen = gr.Dropdown(names, value=names[0] if names else None, label="Run", elem_id="train-run",
                                          allow_custom_value=True)  # fmt: skip
                self.status = gr.Markdown("", elem_id="train-status")
                if studio.trainer is None:
                    gr.Markdown(NO_DATA)
                else:
                    self.lay_out_new(studio.trainer)
            with gr.Column(scale=5, min_width=500):
                options: dict[str, Any] = {"format": "png", "type": "pil", "interactive": False, "show_label": False}
                self.curves = gr.Image(**options, elem_id="train-curves")
                self.preview = gr.Image(**options, elem_id="train-preview", height=420)
        self.connect(studio.trainer)

    def lay_out_new(self, trainer: Trainer) -> None:
        with gr.Group():
            data = gr.Dropdown(trainer.data_sets(), label="Data set", elem_id="new-data")
            name = gr.Textbox(label="Name of the new run", max_length=60, elem_id="new-name")
            with gr.Row():
                size = gr.Number(32, label="Image size", min_width=80,
                                 elem_id="new-size")  # fmt: skip
                steps = gr.Number(2000, label="Steps", min_width=80, elem_id="new-steps")
                batch = gr.Number(32, label="Batch size", min_width=80, elem_id="new-batch")
        with gr.Row():
            self.start = gr.Button("Train", variant="primary", elem_id="new-start")
            self.stop = gr.Button("Stop and save", elem_id="new-stop")
        self.output = gr.Textbox(label="Training log", lines=5, interactive=False, elem_id="new-output")
        self.new = [name, data, size, steps, batch]

    def connect(self, trainer: Trainer | None) -> None:
        seen: Any = gr.State(None)
        timer, refresh = gr.Timer(EVERY), with_messages(self.refresh)
        outputs = [self.chosen, self.status, self.curves, self.preview, seen]
        timer.tick(refresh, [self.chosen, seen], outputs, **QUICK)
        self.chosen.input(refresh, [self.chosen, seen], outputs, **STREAM)
        if trainer is None:
            return

        def start(name: Any, data: Any, size: Any, steps: Any, batch: Any) -> Any:
            new = NewRun.read(name, data, image_size=size, steps=steps, batch_size=batch)
            trainer.start(new)
            return gr.update(choices=[new.name, *trainer.runs.names()], value=new.name)

        def stop() -> None:
            if not trainer.stop():
                gr.Info("No training run that was started here is running.")

        self.start.click(with_messages(start), self.new, self.chosen, **STREAM)
        self.stop.click(stop, None, None, **STREAM)
        timer.tick(trainer.message, None, self.output, **QUICK)

    def refresh(self, name: Any, seen: Any) -> Any:
        """Return the current state of the run. Pictures are sent only if they have changed.

        seen: name, number of rows and preview that the page shows
        """
        known = self.runs.names()
        if not name:
            return gr.update(choices=known), "No run selected.", None, None, None
        if name not in known:
            trainer = self.trainer
            starting = trainer is not None and trainer.running and name == trainer.name
            status = f"{name}: starting" if starting else f"Unknown run {str(name)[:80]!r}."
            return gr.update(choices=known), status, None, None, None
        view = self.runs.view(name)
        now = (name, len(view.rows), str(view.preview))
        before = seen or (None, None, None)
        same = before[0] == name
        curves = gr.skip() if same and before[1] == now[1] else log_chart(view.rows)
        preview = gr.skip() if same and before[2] == now[2] else read_picture(view.preview)
        return gr.update(choices=known), view.status, curves, preview, now
