"""The web server, asked without a browser: no file and no other server is read, and what is too much is refused."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from asking import call, errors
from PIL import Image

from admg.cli.launch import free_port
from admg.cli.main import main
from admg.studio import Limits, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "private").mkdir()
    (root / "private" / "run.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def address(tiny_folders, runs):
    limits = Limits(max_images=4, max_steps=20, max_upload=1)
    model = f"{tiny_folders['model']},{tiny_folders['classifier']}"
    with serving([model], port=free_port(), limits=limits, runs=runs) as address:
        yield address.rstrip("/")


@pytest.fixture(scope="module")
def config(address):
    return httpx.get(f"{address}/config").json()


@pytest.mark.parametrize(("there", "status"), [(False, "Unknown run 'begun'."), (True, "no training has started")])
def test_a_run_that_the_page_does_not_list_yet(address, config, runs, there, status):
    """A training was started while the page looked at another run, which lists the runs without the new one."""
    if there:
        (runs / "begun").mkdir()
        (runs / "begun" / "run.json").write_text("{}")
    messages = call(address, config, "train-run", {"train-run": "begun"}, event="input")
    assert errors(messages) == []
    assert status in str(messages[-1]["output"]["data"])


PATHS = ["/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "file:///etc/passwd", "pyproject.toml"]
PREFIXES = ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme/", "gradio_api/stream/"]


@pytest.mark.parametrize("path", PATHS)
def test_no_file_of_the_server_is_readable(address, path, tiny_folders):
    for begin in PREFIXES:
        answer = httpx.get(f"{address}/{begin}{path}")
        assert answer.status_code in (403, 404, 405), (begin, answer.status_code)
        assert "root:" not in answer.text
    answer = httpx.get(f"{address}/gradio_api/file={tiny_folders['model']}/config.json")
    assert answer.status_code == 403


def test_no_file_of_the_server_can_be_given_as_a_picture(address, config, tmp_path):
    picture = tmp_path / "secret.png"
    Image.new("L", (16, 16), 200).save(picture)
    for file in ({"path": str(picture)}, {"path": str(picture), "url": f"file://{picture}"}):
        part = file | {"meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
        given = {"edit-editor": {"background": part, "layers": [], "composite": part, "id": None},
                 "edit-method": "Change the label (SDEdit)"}  # fmt: skip
        (error,) = errors(call(address, config, "edit-start", given))
        assert str(tmp_path) not in str(error).replace(str(picture), "")


def test_a_file_that_is_no_picture_is_named(address, config):
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"this is no picture", "image/png")})
    part = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    given = {"edit-editor": {"background": part, "layers": [], "composite": part, "id": None},
             "edit-method": "Change the label (SDEdit)"}  # fmt: skip
    (error,) = errors(call(address, config, "edit-start", given))
    assert "the file cannot be read as a picture" in error


def test_no_other_server_is_asked_for_a_picture(address, config):
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(3)

        def listen():
            try:
                server.accept()[0].close()
                asked.set()
            except OSError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        part = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
        given = {"edit-editor": {"background": part, "layers": [], "composite": part, "id": None},
                 "edit-method": "Change the label (SDEdit)"}  # fmt: skip
        assert errors(call(address, config, "edit-start", given))
        thread.join()
    assert not asked.is_set()


def test_a_job_and_what_is_refused(address, config):
    done = call(address, config, "sample-start", {"sample-num": 2, "sample-steps": 2})
    assert done[-1]["success"], done[-1]
    for changed, message in (
        ({"sample-num": 10_000}, "the number of images must be from 1 to 4, got 10,000"),
        ({"sample-steps": 21}, "the number of steps must be from 1 to 20, got 21"),
        ({"sample-seed": 0.5}, "seed must be a whole number"),
    ):
        (error,) = errors(call(address, config, "sample-start", changed))
        assert message in error
    for changed in ({"sample-model": "/etc"}, {"sample-labels": ["no such label"]}, {"sample-sampler": "f.py:g"}):
        assert errors(call(address, config, "sample-start", changed))


def test_large_uploads_are_refused(address):
    files = {"files": ("a.png", b"0" * (2 << 20), "image/png")}
    answer = httpx.post(f"{address}/gradio_api/upload", files=files)
    assert answer.status_code == 413 and "limited to 1 MiB" in answer.text

    def parts():
        for _ in range(64):
            yield b"0" * (1 << 16)

    header = {"content-type": "multipart/form-data; boundary=x"}
    try:
        answer = httpx.post(f"{address}/gradio_api/upload", content=parts(), headers=header)
        assert answer.status_code >= 400
    except httpx.TransportError:
        pass  # the connection was closed while it was sent
    small = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"0" * 1000, "image/png")})
    assert small.status_code == 200


def test_the_page_names_no_other_host(address):
    text = httpx.get(address).text
    for word in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "unpkg", "huggingface.co/"):
        assert f'src="https://{word}' not in text and f"//fonts.{word}" not in text and f"cdn.{word}" not in text


def test_a_port_in_use_is_named(address, capsys, tiny_folders):
    port = address.rpartition(":")[2]
    assert main(["studio", "--models", tiny_folders["model"], "--port", port]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert port in line
