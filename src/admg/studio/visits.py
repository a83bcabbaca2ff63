"""What the tabs share: who asks, errors as messages on the page, the status of a job in words."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from .jobs import Done, JobQueue, Waiting
from .sampling import Counted, Frame

STREAM: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""How to connect an event that runs a job or may show a message. JobQueue lets jobs wait, or refuses them."""
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""How to connect an event that answers at once and shows no message: messages need Gradio's queue."""
LOGGER = logging.getLogger("admg.studio")


def visitor(request: gr.Request | None) -> str:
    """Return a name for the page that asks: a visitor with two open pages counts twice."""
    return str(getattr(request, "session_hash", None) or "a program")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def as_gradio_error(error: Exception) -> gr.Error:
    """Return an error as the message that the page shows. An unexpected one goes to the log of the server."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error)):
        return gr.Error("not enough memory: ask for fewer images", print_exception=False)
    if isinstance(error, ValueError | FloatingPointError):
        return gr.Error(one_line(error), print_exception=False)
    LOGGER.error("an error of the studio", exc_info=error)
    return gr.Error("an error of the studio: the log of the server has the details", print_exception=False)


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the event handler whose errors are messages on the page."""
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
    """Return an update of a job in words. total: number of steps"""
    if isinstance(update, Waiting):
        return f"Waiting: {update.ahead} job{'s' if update.ahead != 1 else ''} before yours"
    if isinstance(update, Frame):
        return f"Step {update.number} of {total}"
    if isinstance(update, Counted):
        return f"Step {update.done} of {update.total}"
    if isinstance(update, Done):
        notes = "".join(f"  \nNote: {note}" for note in update.notes)
        return (f"Stopped: {update.stopped}" if update.stopped else "Done") + notes
    return str(update)


def with_picture_messages(component: Any) -> Any:
    """Return a component that takes pictures, whose errors name what is wrong with a file."""
    read = component.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            raise gr.Error(f"the picture has more than {most} megapixels", print_exception=False) from None
        except (OSError, ValueError, SyntaxError) as error:
            LOGGER.info("a picture that cannot be read: %s", one_line(error))
            raise gr.Error("the file cannot be read as a picture, such as a PNG or JPEG file",
                           print_exception=False) from None  # fmt: skip

    component.preprocess = preprocess  # on the object: a class of its own would be a component without a front end
    return component


def stopper(queue: JobQueue) -> Callable[..., None]:
    """Return the event handler of a button that stops the visitor's job."""

    def stop(request: gr.Request) -> None:
        if not queue.stop(visitor(request)):
            gr.Info("No job of yours is running.")

    return stop
