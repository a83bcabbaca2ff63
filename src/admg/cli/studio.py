"""`admg studio`: a web page to explore guidance."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from admg.config import check, group, setting
from admg.studio import Limits, serving

EXAMPLES = """  admg studio
  admg studio --open --models fashion-mnist --models runs/photos,runs/photos-classifier
  admg studio --runs runs --data pictures          watch the runs in runs/, and train on the folders in pictures/
  admg studio --host 0.0.0.0 --port 8000 --max-images 16 --max-seconds 60          for visitors from elsewhere"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serve a web page for sampling, editing, comparing and training, by default to this computer only.

    It needs the extra `studio` (pip install 'admg[studio]') and no network connection. Visitors can use only the given
    models, and cannot read files of this computer through the page. One job runs at a time; the others wait. Ctrl-C
    stops the studio.

    models: model that visitors can choose, MODEL or MODEL,CLASSIFIER: name, folder or file of weights, and a classifier
        if the model has none of its own
    runs: folder of run directories for the tab Train
    data: folder of data sets to train on; with it, every visitor can start a training run in the folder --runs
    host: address to listen on; 0.0.0.0 makes the page accessible from other computers, without a password
    port: port to listen on
    device: cpu or cuda
    open: open the page in the browser
    """

    models: tuple[str, ...] = setting((), repeat=True, metavar="MODEL", default_text="fashion-mnist")
    runs: Path | None = setting(None, metavar="DIR")
    data: Path | None = setting(None, metavar="DIR")
    host: str = setting("127.0.0.1", metavar="ADDRESS")
    port: int | None = setting(None, min=1, max=65535, default_text="the first free one from 7860")
    device: str = setting("auto", default_text="cuda if there is a GPU")
    open: bool = False
    limits: Limits = group(Limits)

    def __post_init__(self) -> None:
        check(self)
        if self.data is not None and self.runs is None:
            raise ValueError("data requires --runs, the folder to which training runs are written")


def run(options: Options) -> None:
    print("loading the models and the page ...", flush=True)
    with serving(
        options.models or ("fashion-mnist",), host=options.host, port=options.port, limits=options.limits,
        runs=options.runs, data=options.data, device=options.device,
    ) as address:  # fmt: skip
        print(f"admg studio: {address} (Ctrl-C ends it)", flush=True)
        if options.open:
            webbrowser.open(address)
        threading.Event().wait()
