"""Input fields for the settings, shared by the tabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from admg.generation.sampler_specs import SAMPLERS

from .catalog import Catalog, Entry
from .limits import Limits
from .settings import CLASSIFIER, NO_GUIDANCE, SPACINGS, guidance_choices

Fields = dict[str, Any]
"""Gradio components by name of the field of Settings that they set."""


def image_fields(catalog: Catalog, limits: Limits, key: str, several: bool = True) -> Fields:
    """Return the fields for model, labels, number of images and seed.

    key: prefix of the element ids
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
    """Return the update of the labels field when another model is selected."""
    names = entry.label_names
    value: Any = names[:1] if several else (names[0] if names else None)
    return gr.update(choices=names, value=value, visible=bool(names))


def sampling_fields(entry: Entry, limits: Limits, key: str, **preset: Any) -> Fields:
    """Return the fields for guidance, sampler and steps.

    preset: initial values that replace the recommended ones
    """
    recommended = entry.recommended
    values: dict[str, Any] = {
        "guidance": CLASSIFIER if entry.classifier is not None else NO_GUIDANCE, "scale": recommended.scale or 4.0,
        "sampler": recommended.sampler, "steps": int(recommended.steps) if str(recommended.steps).isdecimal() else 25,
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
            spacing = gr.Dropdown(list(SPACINGS), value="even", label="Step spacing", min_width=110,
                                  elem_id=f"{key}-spacing")  # fmt: skip
        eta = gr.Slider(0, 1, value=0, step=0.05, label="DDIM eta (0: deterministic)", elem_id=f"{key}-eta")
        unconditional = gr.Checkbox(False, label="Unconditional network (labels are used by the guide only)",
                                    elem_id=f"{key}-unconditional")  # fmt: skip
        with gr.Row():
            low = gr.Number(0, label="Guide from σ =", min_width=110, elem_id=f"{key}-low")
            high = gr.Number(0, label="to σ = (0: no limit)", min_width=110, elem_id=f"{key}-high")
    return {
        "guidance": guidance, "scale": scale, "sampler": sampler, "steps": steps, "spacing": spacing, "eta": eta,
        "unconditional": unconditional, "low": low, "high": high,
    }  # fmt: skip


def by_name(fields: Fields, values: Sequence[Any]) -> Mapping[str, Any]:
    """Return the values by field name."""
    return dict(zip(fields, values))
