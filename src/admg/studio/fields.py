"""The input fields of the settings, which the tabs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from admg.generation.sampler_specs import SAMPLERS

from .catalog import Catalog, Entry
from .limits import Limits
from .settings import CLASSIFIER, NO_GUIDANCE, SPACINGS, guidance_choices

Fields = dict[str, Any]
"""Components by the name of the field of Settings that they set."""


def subject_fields(catalog: Catalog, limits: Limits, key: str, several: bool = True) -> Fields:
    """Return the fields of what is drawn: model, labels, number of images, seed.

    key: beginning of the elements' ids
    several: whether several labels can be chosen
    """
    first = catalog.first
    names = first.label_names
    with gr.Group():
        model = gr.Dropdown(catalog.names, value=first.name, label="Model", elem_id=f"{key}-model",
                            visible=len(catalog.names) > 1)  # fmt: skip
        labels = gr.Dropdown(
            names, value=names[:1] if several else (names[0] if names else None), multiselect=several,
            label="Labels" if several else "Label", info="Type to search", elem_id=f"{key}-labels",
            visible=bool(names),
        )  # fmt: skip
        with gr.Row():
            num = gr.Number(min(8, limits.max_images), label=f"Images (1 to {limits.max_images})", min_width=90,
                            elem_id=f"{key}-num")  # fmt: skip
            seed = gr.Number(0, label="Seed", min_width=90, elem_id=f"{key}-seed")
    model.change(lambda name: chosen_labels(catalog[name], several), model, labels, show_progress="hidden",
                 api_visibility="private")  # fmt: skip
    return {"model": model, "labels": labels, "num": num, "seed": seed}


def chosen_labels(entry: Entry, several: bool) -> Any:
    """Return the update of the field of labels for another model."""
    names = entry.label_names
    value: Any = names[:1] if several else (names[0] if names else None)
    return gr.update(choices=names, value=value, visible=bool(names))


def drawing_fields(entry: Entry, limits: Limits, key: str, **preset: Any) -> Fields:
    """Return the fields of how it is drawn: guidance, sampler, steps.

    preset: values at first, in place of the recommended ones
    """
    usual = entry.recommended
    values: dict[str, Any] = {
        "guidance": CLASSIFIER if entry.classifier is not None else NO_GUIDANCE, "scale": usual.scale or 4.0,
        "sampler": usual.sampler, "steps": int(usual.steps) if str(usual.steps).isdecimal() else 25,
    } | preset  # fmt: skip
    with gr.Group():
        guidance = gr.Dropdown(
            guidance_choices(), value=values["guidance"], label="Guidance", elem_id=f"{key}-guidance"
        )
        scale = gr.Slider(0, 20, value=values["scale"], step=0.25, label="Guidance scale", elem_id=f"{key}-scale")
    with gr.Accordion("Sampler", open=False, elem_id=f"{key}-steps-more"):
        with gr.Row():
            sampler = gr.Dropdown(sorted(SAMPLERS), value=values["sampler"], label="Sampler", min_width=110,
                                  elem_id=f"{key}-sampler")  # fmt: skip
            steps = gr.Number(min(values["steps"], limits.max_steps), label=f"Steps (1 to {limits.max_steps})",
                              min_width=80, elem_id=f"{key}-steps")  # fmt: skip
            spacing = gr.Dropdown(list(SPACINGS), value="even", label="Spacing of the steps", min_width=110,
                                  elem_id=f"{key}-spacing")  # fmt: skip
        eta = gr.Slider(0, 1, value=0, step=0.05, label="Randomness of ddim (eta)", elem_id=f"{key}-eta")
        unconditional = gr.Checkbox(False, label="Network without the labels (the guide still uses them)",
                                    elem_id=f"{key}-unconditional")  # fmt: skip
        with gr.Row():
            low = gr.Number(0, label="Lowest guided noise level", min_width=110, elem_id=f"{key}-low")
            high = gr.Number(0, label="Highest (0: no limit)", min_width=110, elem_id=f"{key}-high")
    return {
        "guidance": guidance, "scale": scale, "sampler": sampler, "steps": steps, "spacing": spacing, "eta": eta,
        "unconditional": unconditional, "low": low, "high": high,
    }  # fmt: skip


def values_of(fields: Fields, values: Sequence[Any]) -> Mapping[str, Any]:
    """Return the values of the fields, in their order, by name."""
    return dict(zip(fields, values))
