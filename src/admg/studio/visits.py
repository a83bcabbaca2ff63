"""Helpers of the event handlers: visitor, error messages on the page, status of a job as text."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from admg.engine.memory import is_out_of_memory

from .jobs import Done, JobQueue, Waiting
from .sampling import Counted, Frame

STREAM: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""Options of events that run a job or may show a message. JobQueue lets jobs wait, or refuses them."""
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Options of events that return at once and show no message. Messages need Gradio's queue."""
LOGGER = logging.getLogger("admg.studio")


def visitor(request: gr.Request | None) -> str:
    """Return an identifier of the page that sent the request. Two open pages are two visitors."""
    return str(getattr(request, "session_hash", None) or "a program")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def as_gradio_error(error: Exception) -> gr.Error:
    """Convert an exception to a message on the page. Unexpected ones are written to the server log."""
    if isinstance(error, gr.Error):
        return error
    if is_out_of_memory(error):
        return gr.Error("not enough memory: generate fewer images", print_exception=False)
    if isinstance(error, ValueError | FloatingPointError):
        return gr.Error(one_line(error), print_exception=False)
    LOGGER.error("internal error of the studio", exc_info=error)
    return gr.Error("internal error: see the server log for details", print_exception=False)


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the event handler with its errors shown as messages on the page."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any) -> Iterator[Any]:
            try:
                yield from function(*args)
            except Exception as error:
                raise as_gradio_error(error) from None

        return generator

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise as_gradio_error(error) from None

    return call


def status_of(update: Any, total: int = 0) -> str:
    """Return an update of a job as text. total: number of steps"""
    if isinstance(update, Waiting):
        return f"Waiting: {update.ahead} job{'s' if update.ahead != 1 else ''} ahead of yours"
    if isinstance(update, Frame):
        return f"Step {update.number} of {total}"
    if isinstance(update, Counted):
        return f"Step {update.done} of {update.total}"
    if isinstance(update, Done):
        notes = "".join(f"  \nNote: {note}" for note in update.notes)
        return (f"Stopped: {update.stopped}" if update.stopped else "Done") + notes
    return str(update)


def with_picture_messages(component: Any) -> Any:
    """Let a component that reads pictures explain what is wrong with a file. Returns the component."""
    read = component.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            raise gr.Error(f"the picture must have at most {most} megapixels", print_exception=False) from None
        except (OSError, ValueError, SyntaxError) as error:
            LOGGER.info("unreadable picture: %s", one_line(error))
            raise gr.Error("the file cannot be read as a picture, such as a PNG or JPEG file",
                           print_exception=False) from None  # fmt: skip

    component.preprocess = preprocess  # on the instance: Gradio has no front end for subclasses
    return component


def stop_handler(queue: JobQueue) -> Callable[..., None]:
    """Return the event handler that stops the visitor's job."""

    def stop(request: gr.Request) -> None:
        if not queue.stop(visitor(request)):
            gr.Info("You have no running job.")

    return stop
