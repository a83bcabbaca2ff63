"""The web server of the studio: on loopback by default, without analytics, with limits on request sizes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from admg.engine.device import choose_device

from .catalog import Catalog
from .jobs import JobQueue
from .limits import Limits
from .runs import RunFolder, Trainer
from .shared import Folders, Studio

MISSING = "admg studio needs Gradio: pip install 'admg[studio]'"
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyLimit:
    """ASGI middleware that answers requests with too large a body with status 413, without reading all of it."""

    def __init__(self, app: Any, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sizes = [value for name, value in scope["headers"] if name == b"content-length"]
        if sizes and not (sizes[0].isdigit() and int(sizes[0]) <= self.max_bytes):
            await refuse(send, self.max_bytes)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, limited, send)


async def refuse(send: Send, max_bytes: int) -> None:
    """Answer that the request is too large."""
    text = f'{{"detail": "uploads are limited to {max_bytes >> 20} MiB"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@contextmanager
def serving(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    runs: Path | str | None = None,
    data: Path | str | None = None,
    device: str = "auto",
) -> Iterator[str]:
    """Context manager that serves the studio from threads of this process, and yields its address.

    models: names of the models that visitors can choose, see Catalog
    host, port: address to listen on. If port is None, the first free one from 7860
    runs: folder of run directories, shown in the Train tab
    data: folder of data sets on which visitors can start training runs, which are written to `runs`
    Raises ValueError for invalid models or folders and if Gradio is not installed; OSError if the port is in use.
    """
    if data is not None and runs is None:
        raise ValueError("data requires runs, the folder to which training runs are written")
    limits = limits or Limits()
    folder = None if runs is None else RunFolder(runs)
    trainer = None if data is None or folder is None else Trainer(folder, data)
    with tempfile.TemporaryDirectory(prefix="admg-studio-") as scratch:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "0", "GRADIO_TEMP_DIR": str(Path(scratch) / "cache"),
                       "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_NODE_SERVER_NAME": ""}  # fmt: skip
        try:
            import gradio as gr
        except ImportError:
            raise ValueError(MISSING) from None
        from PIL import Image
        from starlette.middleware import Middleware

        from .page import CSS, FONTS, MONOSPACE, build

        Image.MAX_IMAGE_PIXELS = limits.max_megapixels * 1_000_000 // 2  # Pillow raises an error at twice this number
        catalog = Catalog(models, choose_device(device))
        queue = JobQueue(limits.max_seconds, limits.max_waiting)
        files = Path(scratch) / "files"
        files.mkdir()
        studio = Studio(catalog, limits, queue, Folders(files), folder, trainer)
        page = build(studio)
        page.queue(max_size=limits.max_waiting + 32, default_concurrency_limit=None)
        limit = Middleware(BodyLimit, max_bytes=limits.max_upload << 20)
        theme = gr.themes.Default(font=FONTS, font_mono=MONOSPACE)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme,
                css=CSS, allowed_paths=[], max_file_size=limits.max_upload << 20, footer_links=[], ssr_mode=False,
                enable_monitoring=False, mcp_server=False, pwa=False, state_session_capacity=100, inbrowser=False,
                strict_cors=True, max_threads=limits.max_waiting + 40, run_history=False,
                app_kwargs={"middleware": [limit], "openapi_url": None},
            )  # fmt: skip
            yield address
        finally:
            studio.close()
            page.close(verbose=False)
