"""What bad requests to the studio cost: seconds until the answer, and memory of the server beyond what it had.

python benchmarks/visitors.py

Another visitor samples eight images before and after, so that the studio is seen to go on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "studio")]

from asking import call, errors  # noqa: E402

from admg.cli.launch import free_port  # noqa: E402

JOB = {"sample-num": 8, "sample-steps": 10}


def peak(pid: int) -> float:
    """Return the peak memory of a process in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measured(pid: int, name: str, ask: Callable[[], str]) -> None:
    """Print what an action costs, and the answer."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before, start = peak(pid), time.perf_counter()
    answer = ask()
    seconds = time.perf_counter() - start
    print(f"| {name} | {seconds:.2f} s | {max(0.0, peak(pid) - before):.0f} MiB | {answer[:110]} |", flush=True)


def main() -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "admg", "studio", "--port", str(port), "--max-waiting", "1"]
    with tempfile.TemporaryDirectory() as scratch, subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(address)
            visit(address, server.pid, Path(scratch))
        finally:
            server.terminate()


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            httpx.get(address, timeout=60)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"no studio at {address} within two minutes")


def visit(address: str, pid: int, scratch: Path) -> None:
    config = httpx.get(f"{address}/config").json()

    def event(element: str, changed: dict[str, object]) -> str:
        messages = call(address, config, element, changed)
        return str((errors(messages) or ["done"])[0])

    def upload(content: bytes) -> httpx.Response:
        return httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", content, "image/png")}, timeout=60)

    def edit(content: bytes) -> str:
        answer = upload(content)
        if answer.status_code != 200:
            return f"status {answer.status_code}: {answer.text}"
        part = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
        editor = {"background": part, "layers": [], "composite": part, "id": None}
        return event("edit-start", {"edit-editor": editor, "edit-method": "Change the label (SDEdit)"})

    def both() -> str:
        with ThreadPoolExecutor(2) as pool:
            return ", ".join(pool.map(lambda _: event("sample-start", JOB), range(2)))

    Image.fromarray(np.zeros((6000, 6000), np.uint8)).save(scratch / "bomb.png")
    print("| what is sent | answer after | memory | answer |\n| --- | ---: | ---: | --- |")
    measured(pid, "eight images, ten steps", lambda: event("sample-start", JOB))
    measured(pid, "10,000 images", lambda: event("sample-start", {"sample-num": 10_000}))
    measured(pid, "100,000 steps", lambda: event("sample-start", {"sample-steps": 100_000}))
    measured(pid, "an upload of 200 MiB", lambda: edit(b"0" * (200 << 20)))
    measured(pid, "a text with the name of a picture", lambda: edit(b"no picture" * 1000))
    measured(pid, "a PNG of 6000 x 6000 pixels in 0.04 MB", lambda: edit((scratch / "bomb.png").read_bytes()))
    measured(pid, "two visitors at once", both)
    measured(pid, "eight images, ten steps", lambda: event("sample-start", JOB))


if __name__ == "__main__":
    main()
