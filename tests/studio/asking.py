"""Asks the server of the studio as its page does, without a browser."""

from __future__ import annotations

import json
import uuid

import httpx


def dependency(config, element, event="click"):
    """Return the event of an element, its inputs' ids and the components by id."""
    components = {part["id"]: part for part in config["components"]}
    (chosen,) = (i for i, part in components.items() if part["props"].get("elem_id") == element)
    return next(one for one in config["dependencies"] if [chosen, event] in [list(t) for t in one["targets"]])


def call(address, config, element, changed, session=None, event="click"):
    """Send an event as the page does. changed: values by the id of the element. Return the messages."""
    found, components = dependency(config, element, event), {part["id"]: part for part in config["components"]}
    data = []
    for i in found["inputs"]:
        props = components[i]["props"]
        data.append(changed.get(props.get("elem_id"), props.get("value")))
    session = session or uuid.uuid4().hex
    body = {"data": data, "fn_index": found["id"], "session_hash": session, "event_data": None, "trigger_id": None}
    answer = httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=60)
    if answer.status_code != 200:
        return [answer.text]
    messages = []
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                messages.append(json.loads(line[5:]))
                if messages[-1]["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                    break
    return messages


def errors(messages):
    return [m["output"].get("error") for m in messages if isinstance(m, dict) and m.get("success") is False]
