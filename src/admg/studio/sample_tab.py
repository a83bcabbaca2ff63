"""The Sample tab: images step by step, label probabilities, scale sheet, code and downloads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from admg.generation.denoising import find_ffmpeg

from .catalog import Entry
from .charts import probability_chart
from .commands import sample_code, sample_command
from .fields import by_name, image_fields, sampling_fields
from .jobs import Done
from .pictures import frame_at, grid, noisy_grid, predicted_grid, save_gif, save_mp4, save_npz
from .sampling import Frame, Result, parse_scales, run_sampling, run_sheet, sheet_option
from .settings import Settings, number, read
from .shared import Studio
from .visits import STREAM, status_of, stop_handler, visitor, with_messages

MEAN = "mean of all images"
CHART_SECONDS = 0.4
"""Minimum time between two updates of the chart during sampling."""


@dataclass(frozen=True, eq=False)
class FinishedJob:
    """A finished job, whose steps can be shown again."""

    result: Result
    entry: Entry

    @property
    def images(self) -> list[str]:
        """Image numbers from 1, as text."""
        return [str(i + 1) for i in range(len(self.result.samples))]

    def chart(self, which: Any) -> Image.Image:
        """Return the chart of an image, or of the mean."""
        return chart_of(self.result.frames, which, self.entry)


def chart_of(frames: list[Frame], which: Any, entry: Entry) -> Image.Image:
    """Return the chart of label probabilities. which: image number from 1, or MEAN"""
    num = len(frames[0].x) if frames else 0
    image = int(which) - 1 if str(which).isdecimal() and 1 <= int(which) <= num else None
    highest = float(entry.model.diffusion.schedule.timesteps[-1])
    return probability_chart(frames, image, entry.label_names, highest)


class SampleTab:
    """Builds the tab inside the current gr.Tab and connects its events."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.done: Any = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.lay_out_settings()
            with gr.Column(scale=5, min_width=500):
                self.lay_out_images()
        with gr.Tabs():
            with gr.Tab("Command line"):
                self.command = gr.Code(
                    language="shell", wrap_lines=True, show_label=False, elem_id="sample-command", interactive=False
                )
            with gr.Tab("Python"):
                self.code = gr.Code(language="python", show_label=False, elem_id="sample-code", interactive=False)
            with gr.Tab("Scale sheet", elem_id="sheet-tab"):
                self.lay_out_sheet()
            with gr.Tab("Download"), gr.Row():
                self.lay_out_downloads()
        self.connect()

    def lay_out_settings(self) -> None:
        catalog, limits = self.studio.catalog, self.studio.limits
        self.fields = image_fields(catalog, limits, "sample") | sampling_fields(catalog.first, limits, "sample")
        with gr.Row():
            self.start = gr.Button("Generate", variant="primary", elem_id="sample-start")
            self.stop = gr.Button("Stop", elem_id="sample-stop")
        self.status = gr.Markdown("Ready", elem_id="sample-status")

    def lay_out_images(self) -> None:
        options: dict[str, Any] = {"format": "png", "type": "pil", "interactive": False, "show_label": False}
        with gr.Row():
            self.x_t = gr.Image(**options, buttons=["fullscreen"], elem_id="sample-x", height=430)
            self.x_0 = gr.Image(**options, buttons=["download", "fullscreen"], elem_id="sample-x0", height=430)
        with gr.Row():
            self.step = gr.Slider(1, 25, value=25, step=1, label="Step", elem_id="sample-step", interactive=True)
            self.which = gr.Dropdown([MEAN], value=MEAN, label="Label probabilities (classifier)",
                                     elem_id="sample-which")  # fmt: skip
        self.chart = gr.Image(**options, buttons=[], elem_id="sample-curve")

    def lay_out_sheet(self) -> None:
        with gr.Row(equal_height=True):
            self.scales = gr.Textbox("0, 1, 2, 4, 8", label="Guidance scales, each with the same seeds",
                                     elem_id="sheet-scales", scale=3)  # fmt: skip
            self.start_sheet = gr.Button("Generate sheet", elem_id="sheet-start", scale=1)
        self.sheet_status = gr.Markdown("", elem_id="sheet-status")
        self.sheet = gr.Image(format="png", type="pil", interactive=False, show_label=False, elem_id="sheet",
                              buttons=["download", "fullscreen"])  # fmt: skip
        self.sheet_command = gr.Code(
            language="shell", wrap_lines=True, label="Command of this sheet", interactive=False
        )

    def lay_out_downloads(self) -> None:
        self.files = {
            "png": gr.DownloadButton("PNG", elem_id="download-png", interactive=False),
            "npz": gr.DownloadButton("NPZ", elem_id="download-npz", interactive=False),
            "gif": gr.DownloadButton("GIF animation", elem_id="download-gif", interactive=False),
            "mp4": gr.DownloadButton(
                "MP4 animation", elem_id="download-mp4", interactive=False, visible=find_ffmpeg() is not None
            ),
        }

    def connect(self) -> None:
        inputs, pictures = [*self.fields.values()], [self.x_t, self.x_0, self.chart]
        outputs = [self.status, *pictures, self.command, self.code, self.done, self.step, self.which]
        generated = self.start.click(with_messages(self.generate), [self.which, *inputs], outputs, **STREAM)
        # A separate event: writing the animation takes a second, during which the button would not respond.
        generated.success(with_messages(self.offer), self.done, [*self.files.values()], **STREAM)
        self.start_sheet.click(with_messages(self.generate_sheet), [self.scales, *inputs],
                              [self.sheet_status, self.sheet, self.sheet_command], **STREAM)  # fmt: skip
        self.stop.click(stop_handler(self.studio.queue), None, None, **STREAM)
        for event in (self.step.release, self.which.input):
            event(with_messages(self.show_step), [self.done, self.step, self.which], pictures, **STREAM)

    def settings(self, values: Any) -> tuple[Settings, Entry]:
        settings = read(by_name(self.fields, values), self.studio.limits)
        return settings, self.studio.catalog[settings.model]

    def generate(self, request: gr.Request, which: Any, *values: Any) -> Iterator[Any]:
        """Generate images, showing each step."""
        settings, entry = self.settings(values)
        total = len(entry.model.respace(settings.spec).diffusion)
        texts = {self.command: sample_command(settings, entry), self.code: sample_code(settings, entry)}
        frames: list[Frame] = []
        updated = 0.0
        for update in self.studio.queue.run(visitor(request), lambda job: run_sampling(entry, settings, job)):
            changed: dict[Any, Any] = {self.status: status_of(update, total)} | ({} if frames else texts)
            if isinstance(update, Frame):
                frames.append(update)
                changed |= {self.x_t: noisy_grid(update), self.x_0: predicted_grid(update)}
                if time.monotonic() - updated > CHART_SECONDS and entry.classifier is not None:
                    changed[self.chart], updated = chart_of(frames, which, entry), time.monotonic()
            result = update.result if isinstance(update, Done) else None
            yield changed if result is None else changed | self.finished(FinishedJob(result, entry), which)

    def offer(self, request: gr.Request, view: FinishedJob | None) -> dict[Any, Any]:
        """Write the files to download."""
        if view is None:
            return {}
        paths = downloads(view.result, self.studio.folders.new(visitor(request)))
        return {self.files[kind]: gr.update(value=str(path), interactive=True) for kind, path in paths.items()}

    def finished(self, view: FinishedJob, which: Any) -> dict[Any, Any]:
        """Return the updates of the page for a finished job."""
        frames = view.result.frames
        which = which if which in view.images else MEAN
        return {
            self.done: view, self.x_t: noisy_grid(frames[-1]), self.x_0: grid(view.result.samples.images, "images"),
            self.chart: view.chart(which) if view.entry.classifier is not None else None,
            self.step: gr.update(maximum=frames[-1].number, value=frames[-1].number),
            self.which: gr.update(choices=[MEAN, *view.images], value=which),
        }  # fmt: skip

    def show_step(self, view: FinishedJob | None, position: Any, which: Any) -> Any:
        """Show a step of a finished job."""
        if view is None:
            return gr.skip(), gr.skip(), gr.skip()
        frame = frame_at(view.result.frames, int(position))
        return noisy_grid(frame), predicted_grid(frame), view.chart(which)

    def generate_sheet(self, request: gr.Request, text: Any, *values: Any) -> Iterator[Any]:
        """Generate the scale sheet."""
        settings, entry = self.settings(values)
        chosen = parse_scales(text)
        spec = f"{sheet_option(settings)}={','.join(map(number, chosen))}"
        command = sample_command(settings, entry, sheet=spec)
        for update in self.studio.queue.run(visitor(request), lambda job: run_sheet(entry, settings, chosen, job)):
            changed: dict[Any, Any] = {self.sheet_status: status_of(update)}
            if isinstance(update, Done) and update.result is not None:
                changed |= {self.sheet: update.result, self.sheet_command: command}
            yield changed


def downloads(result: Result, folder: Path) -> dict[str, Path]:
    """Write the files to download, and return their paths by kind."""
    paths = {"png": folder / "sheet.png"}
    result.samples.sheet().save(paths["png"])
    paths["npz"] = save_npz(result.samples, folder)
    paths["gif"] = save_gif(result.frames, folder / "denoising.gif")
    if find_ffmpeg() is not None:
        paths["mp4"] = save_mp4(result.frames, folder / "denoising.mp4")
    return paths
