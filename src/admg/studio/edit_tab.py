"""The Edit tab: inpainting, changes of the label, interpolation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from .catalog import Entry
from .edit_commands import edit_code, edit_command
from .editing import INPAINTING, METHODS, EditSettings, Pictures, painted, prepared, run_edit
from .fields import by_name, image_fields, sampling_fields
from .jobs import Done
from .pictures import enlarged, grid, save_npz
from .sampling import Frame, Result
from .settings import NO_GUIDANCE, read, real_number, whole_number
from .shared import Studio
from .visits import QUICK, STREAM, status_of, stop_handler, visitor, with_messages, with_picture_messages

CANVAS = 384
INPAINT_HINT, DRAW_HINT = "Paint over the region to inpaint.", "Painted strokes become part of the picture."
COLOURS: list[str | tuple[str, float]] = ["#ffffff", "#000000", "#808080", "#ff3b30"]


class EditTab:
    """Builds the tab inside the current gr.Tab and connects its events."""

    def __init__(self, studio: Studio):
        self.studio = studio
        with gr.Row():
            with gr.Column(scale=3, min_width=400):
                self.lay_out_pictures()
            with gr.Column(scale=2, min_width=300):
                self.lay_out_settings()
            with gr.Column(scale=3, min_width=400):
                self.lay_out_result()
        with gr.Tabs():
            with gr.Tab("Python"):
                self.code = gr.Code(language="python", show_label=False, elem_id="edit-code", interactive=False)
            with gr.Tab("Command line"):
                self.command = gr.Code(
                    language="shell", wrap_lines=True, show_label=False, elem_id="edit-command", interactive=False
                )
            with gr.Tab("Download"):
                self.files = gr.File(label="Generated images and input pictures", file_count="multiple",
                                     interactive=False, elem_id="edit-files")  # fmt: skip
        for component in (self.editor, self.second):
            with_picture_messages(component)
        self.connect()

    def lay_out_pictures(self) -> None:
        self.editor = gr.ImageEditor(
            type="pil", image_mode="RGBA", sources=["upload", "clipboard"], format="png", label="Upload, paint, mask",
            canvas_size=(CANVAS, CANVAS), layers=False, transforms=["crop"], buttons=[], elem_id="edit-editor",
            brush=gr.Brush(default_size=24, colors=COLOURS), height=520,
        )  # fmt: skip
        self.hint = gr.Markdown(INPAINT_HINT, elem_id="edit-hint")
        with gr.Column(visible=False) as self.second_box:  # Gradio rebuilds a hidden Image
            self.second = gr.Image(type="pil", image_mode=None, sources=["upload"], label="Second picture",
                                   format="png", elem_id="edit-second", height=240)  # fmt: skip

    def lay_out_settings(self) -> None:
        catalog, limits = self.studio.catalog, self.studio.limits
        self.method = gr.Dropdown(list(METHODS), value=next(iter(METHODS)), label="Kind of edit", elem_id="edit-method")
        self.fields = image_fields(catalog, limits, "edit", several=False)
        self.edit_fields = {
            "strength": gr.Slider(0.05, 1, value=0.6, step=0.05, label="Strength (share of the steps that are run)",
                                  visible=False, elem_id="edit-strength"),
            "from_label": gr.Dropdown(["", *catalog.first.label_names], value="", visible=False,
                                      label="Label of the picture (optional)", elem_id="edit-from"),
            "resamplings": gr.Slider(1, 20, value=4, step=1, label="RePaint resamplings", elem_id="edit-passes"),
            "jump_length": gr.Slider(1, 50, value=5, step=1, label="RePaint jump length (steps)", elem_id="edit-jump"),
            "dps_scale": gr.Slider(0, 10, value=1, step=0.1, label="DPS step size", visible=False,
                                   elem_id="edit-size"),
            "second_seed": gr.Number(1, label="Second seed", visible=False,
                                     elem_id="edit-other"),
        }  # fmt: skip
        self.fields |= sampling_fields(catalog.first, limits, "edit", guidance=NO_GUIDANCE)
        with gr.Row():
            self.start = gr.Button("Edit", variant="primary", elem_id="edit-start")
            self.stop = gr.Button("Stop", elem_id="edit-stop")
        self.status = gr.Markdown("Ready", elem_id="edit-status")

    def lay_out_result(self) -> None:
        options: dict[str, Any] = {"format": "png", "type": "pil", "interactive": False}
        self.before = gr.Image(**options, label="Model input (region to inpaint in red)", height=300,
                               buttons=["fullscreen"], elem_id="edit-before")  # fmt: skip
        self.after = gr.Image(**options, show_label=False, elem_id="edit-after", buttons=["download", "fullscreen"],
                              height=430)  # fmt: skip

    def connect(self) -> None:
        inputs = [self.editor, self.second, self.method, *self.fields.values(), *self.edit_fields.values()]
        outputs = [self.status, self.before, self.after, self.command, self.code, self.files]
        self.start.click(with_messages(self.edit), inputs, outputs, **STREAM)
        self.stop.click(stop_handler(self.studio.queue), None, None, **STREAM)
        self.method.change(
            visible_fields, self.method, [self.hint, self.second_box, *self.edit_fields.values()], **QUICK
        )
        catalog = self.studio.catalog
        self.fields["model"].change(
            lambda name: gr.update(choices=["", *catalog[name].label_names], value=""),
            self.fields["model"], self.edit_fields["from_label"], **QUICK,
        )  # fmt: skip

    def edit(self, request: gr.Request, drawn: Any, second: Any, method: Any, *values: Any) -> Iterator[Any]:
        """Generate the edits, showing each step."""
        settings = read(by_name(self.fields, values), self.studio.limits)
        options = edit_settings(method, by_name(self.edit_fields, values[len(self.fields) :]))
        entry = self.studio.catalog[settings.model]
        pictures = read_pictures(drawn, second, options, entry)
        total = len(entry.model.respace(settings.spec).diffusion)
        first = {self.before: input_picture(pictures), self.command: edit_command(settings, options, pictures, entry),
                 self.code: edit_code(settings, options, pictures, entry)}  # fmt: skip
        for update in self.studio.queue.run(
            visitor(request), lambda job: run_edit(entry, settings, options, pictures, job)
        ):
            changed: dict[Any, Any] = {self.status: status_of(update, total)} | first
            first = {}
            if isinstance(update, Frame):
                changed[self.after] = grid(update.x0, "predicted x0")
            if isinstance(update, Done) and update.result is not None:
                folder = self.studio.folders.new(visitor(request))
                changed[self.after] = grid(update.result.samples.images, "images")
                changed[self.files] = write_downloads(update.result, pictures, folder)
            yield changed


def visible_fields(title: Any) -> list[Any]:
    """Return what a kind of edit shows: the meaning of strokes, second picture, EditTab.edit_fields."""
    method = METHODS.get(title, "repaint")
    of_method = {
        "strength": ("sdedit", "inversion"), "from_label": ("inversion",), "resamplings": ("repaint",),
        "jump_length": ("repaint",), "dps_scale": ("dps",), "second_seed": ("interpolate",),
    }  # fmt: skip
    hint = gr.update(value=INPAINT_HINT if method in INPAINTING else DRAW_HINT)
    shown = [method == "interpolate", *(method in methods for methods in of_method.values())]
    return [hint, *(gr.update(visible=visible) for visible in shown)]


def edit_settings(method: Any, values: Mapping[str, Any]) -> EditSettings:
    """Return the edit options chosen on the page. Raises ValueError for values out of range."""
    if method not in METHODS:
        raise ValueError(f"the kind of edit must be one of {', '.join(METHODS)}")
    numbers: dict[str, Any] = {name: real_number(name, values[name]) for name in ("strength", "dps_scale")}
    numbers |= {name: whole_number(name, values[name]) for name in ("resamplings", "jump_length", "second_seed")}
    return EditSettings(method=METHODS[method], from_label=str(values["from_label"] or ""), **numbers)


def read_pictures(drawn: Any, second: Any, options: EditSettings, entry: Entry) -> Pictures:
    """Return the pictures on the page at the size of the model.

    drawn: value of the gr.ImageEditor: background, layers, composite. Strokes are the region to inpaint, or else a part
        of the picture
    second: second picture of an interpolation
    """
    drawn = drawn or {}
    layers = [layer for layer in drawn.get("layers") or [] if layer is not None]
    mask = painted(layers, entry.model)
    inpaints = options.method in INPAINTING
    other = prepared(second, entry.model) if options.method == "interpolate" else None
    if drawn.get("background") is None and (mask is None or inpaints):
        return Pictures(second=other)
    picture = prepared(drawn["background" if inpaints else "composite"], entry.model)
    return Pictures(picture, mask if inpaints else None, other)


def input_picture(pictures: Pictures) -> Any:
    """Return the input of the model, with the region to inpaint in red; None without a picture."""
    if pictures.picture is None:
        return None
    image = enlarged(pictures.picture).convert("RGB")
    if pictures.painted is not None:
        kept = enlarged((~pictures.painted).astype("uint8")[..., None] * 255).convert("L")  # with a white margin
        image.paste((220, 40, 40), mask=kept.point(lambda value: 255 if value == 0 else 0))
    return image


def write_downloads(result: Result, pictures: Pictures, folder: Path) -> list[str]:
    """Write the files to download, and return their paths."""
    paths = [save_npz(result.samples, folder), folder / "sheet.png"]
    result.samples.sheet().save(paths[1])
    for name, image in pictures.files().items():
        image.save(folder / name)
        paths.append(folder / name)
    return [str(path) for path in paths]
