"""The command `admg`. Bad input gives one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import io
import os
import platform
import select
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from admg.config import did_you_mean, printable, shortened
from admg.offline import downloads_forbidden, offline
from admg.threads import Reading, available_cores, calm_barriers

from . import launch
from .options import Common, Parser, add_options, parse, with_options

COMMANDS = {
    "demo": "sample every label with guidance, and a sheet of guidance scales",
    "studio": "explore guidance on a web page",
    "sample": "generate images of chosen labels, with or without guidance",
    "edit": "change images towards labels",
    "interpolate": "generate the images between two images or two seeds",
    "upsample": "enlarge images with a super-resolution model",
    "train": "train a diffusion model on a folder of images",
    "train-classifier": "train a noisy classifier for guidance",
    "train-upsampler": "train a super-resolution model",
    "ema": "make averages of other lengths from the snapshots of a run, and compare them",
    "evaluate": "compare samples with a reference: FID, sFID, IS, KID, precision, recall and more",
    "evaluate nll": "measure the log-likelihood of real images in bits per dimension",
    "sweep": "sample and evaluate over guidance scales, samplers and steps",
    "neighbours": "find the nearest training images of samples, to detect memorisation",
    "data": "list the commands for data sets",
    "data info": "show the contents of a data set: images, sizes, classes, damaged files",
    "data pack": "write a data set, resized once, as one zip for training",
    "recipes": "list the hyperparameters of published models, with memory and time",
    "models": "list the shipped and the published models",
    "info": "describe a model: architecture, parameters, labels, provenance",
    "import-openai": "convert a checkpoint of guided-diffusion, with or without its flags",
    "verify": "verify files against the checksums that were stored with them",
    "tune-steps": "find the best timesteps for sampling a model with few network evaluations",
    "export": "write a model for diffusers or guided-diffusion, or as a graph of ONNX or torch.export",
    "diagnose": "infer the missing settings of a checkpoint from real images",
    "doctor": "examine the installation: device, kernels, memory, caches, speed, with advice",
    "completion": "print a completion script for bash, zsh or tcsh",
}

TOGETHER = (
    "sample", "edit", "interpolate", "upsample", "sweep", "evaluate", "neighbours", "train", "train-classifier",
    "train-upsampler",
)  # fmt: skip
"""Commands that share their work among processes of torchrun or srun; all others require a single process."""

FIRST_STEPS = """Guided diffusion for pixel images.

To begin:
  admg demo                                          pictures of guided samples in one to two minutes
  admg sample --label sneaker --num 8 --out sneakers
  admg train --data my-images --image-size 32 --out run

  admg --help             all commands
  admg COMMAND --help     the options of a command, with examples
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 when interrupted, 1 for an error of admg."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = command_name(argv)
    if name is None:
        return _without_command(argv)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(
            f"admg: error: unknown command {name!r}" + (f": {hint}" if hint else "") + " (see admg --help)",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a process that is lost gets one line of ours, no C++ frames
    calm_barriers()  # before torch is imported
    started = Reading.now()
    module = importlib.import_module(f"admg.cli.{name.replace('-', '_').replace(' ', '_')}")
    parser = Parser(prog=f"admg {name}")
    arguments = argv[len(name.split()) :]
    try:
        with warnings.catch_warnings(), redirect_stdout(Escaping(sys.stdout)):
            warnings.showwarning = partial(show_warning, module)
            return _run(parser, name, module, arguments, started)
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and is_closed(sys.stdout):  # as by `| head`
            return 128 + signal.SIGPIPE
        if os.environ.get("ADMG_TRACEBACK"):
            raise
        print(f"admg {name}: error: {of_process()}{with_options(one_line(error), module)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"admg {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("ADMG_TRACEBACK"):
            raise
        if ran_out_of_memory(error):
            print(f"admg {name}: error: {of_process()}out of memory: choose a smaller --batch-size", file=sys.stderr)
            return 2
        print(f"admg {name}: {of_process()}{report_unexpected_error(error, argv)}", file=sys.stderr)
        return 1


def is_closed(stream: TextIO) -> bool:
    """Whether a stream no longer has a reader; if so, later output is discarded without an error."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


class Escaping(io.TextIOBase):
    """A stream that escapes control characters, for untrusted names of files and labels."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def flush(self) -> None:
        self.stream.flush()


def ran_out_of_memory(error: Exception) -> bool:
    """Whether the error means that memory ran out."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from admg.engine.memory import is_out_of_memory

    return is_out_of_memory(error)


def report_unexpected_error(error: Exception, argv: list[str]) -> str:
    """Return one line about an unexpected error, after writing its traceback to a file."""
    from admg import __version__

    about = f"admg {__version__}, Python {platform.python_version()}, {platform.platform()}\n{shlex.join(argv)}\n\n"
    line = f"this is a bug in admg, not in your input: {type(error).__name__}: {one_line(error)[:200]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="admg-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(about + "".join(traceback.format_exception(error)))
    except OSError:
        return f"{line} (ADMG_TRACEBACK=1 shows where)"
    return f"{line}; please report it with {file.name}"


def command_name(argv: list[str]) -> str | None:
    """Return the command that the arguments begin with, of one word or two; None if they begin with an option."""
    if " ".join(argv[:2]) in COMMANDS:
        return " ".join(argv[:2])
    return argv[0] if argv and not argv[0].startswith("-") else None


def command_parser() -> Parser:
    """Return the parser of `admg` without a command, whose help lists the commands."""
    parser = Parser(prog="admg", description="Guided diffusion for pixel images.", usage="admg [--version] COMMAND ...")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_argument_group("commands (admg COMMAND --help lists the options)")
    for name, text in COMMANDS.items():
        commands.add_argument(name, nargs="?", metavar=name, help=text)
    return parser


def _without_command(argv: list[str]) -> int:
    if not argv:
        print(FIRST_STEPS, end="")
        return 0
    if argv == ["--version"]:
        from admg import __version__

        print(f"admg {__version__}")
        return 0
    parser = command_parser()
    if argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    hint = did_you_mean(argv[0], ("--help", "--version"))
    print(
        f"admg: error: unknown option {argv[0]!r}: {hint or 'a command is expected'} (see admg --help)", file=sys.stderr
    )
    return 2


def _run(parser: Parser, name: str, module: ModuleType, argv: list[str], started: Reading | None) -> int:
    add_options(parser, module, together=name in TOGETHER)
    options, common = parse(parser, module, argv)
    with downloads_forbidden(common.offline or offline()):
        return _run_parsed(name, module, argv, options, common, started)


def _run_parsed(
    name: str, module: ModuleType, argv: list[str], options: Any, common: Common, started: Reading | None
) -> int:
    from admg.engine import configure_process, follow_load  # imports torch, for which --help need not wait
    from admg.engine.device import Processes

    processes = Processes.from_environment()
    if processes.count > 1 and name not in TOGETHER:
        raise ValueError(f"this command requires a single process, without a launcher, got {processes.count}")
    if common.gpus is not None and (count := gpus(common.gpus, common.given, processes.count)) > 1:
        return launch.launch(count, [*name.split(), *launch.without_gpus(argv)])
    if processes.rank > 0:
        warnings.showwarning = lambda *args, **options: None  # the first process prints them
    configure_process(threads=common.threads or thread_count())
    follow_load(None if common.threads or "OMP_NUM_THREADS" in os.environ else started)
    module.run(options)
    return 0


def gpus(text: str, given: Mapping[str, Any], processes: int) -> int:
    """Return the number of GPUs requested by --gpus.

    Raises ValueError if another option contradicts it, or if a launcher has started this process.
    """
    launch.refuse_launcher(text, processes)
    for name, allowed in (("device", ("auto", "cuda")), ("rank", ()), ("world_size", ())):
        if name in given and given[name] not in allowed:
            raise ValueError(f"--gpus cannot be combined with --{name.replace('_', '-')} {given[name]}")
    return launch.gpu_count(text)


def thread_count() -> int | None:
    """Return the number of threads for the cores available to this process; None if OMP_NUM_THREADS is set."""
    import torch

    return None if "OMP_NUM_THREADS" in os.environ else min(torch.get_num_threads(), available_cores())


def of_process() -> str:
    """Return 'process 1 of 2: ' if a launcher started several processes, and "" otherwise."""
    from admg.engine.device import Processes

    try:
        processes = Processes.from_environment()
    except ValueError:
        return ""
    return f"process {processes.rank} of {processes.count}: " if processes.count > 1 else ""


def show_warning(
    command: ModuleType, message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a warning as one line; that of a library, such as Pillow's of a damaged file, begins with its name."""
    library = Path(filename.replace(os.sep, "/").rpartition("/site-packages/")[2].partition("/")[0]).stem
    whose = "" if category is UserWarning and library in ("", "admg") else f"{library or Path(filename).stem}: "
    if whose and os.environ.get("ADMG_TRACEBACK"):
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)
        return
    text = " ".join(str(message).split())
    text = text if whose else with_options(text, command)
    print(shortened(printable(f"note: {whose}{text}")), file=sys.stderr)


def one_line(error: Exception) -> str:
    """Return the message on one line; for an OSError of the system, it includes the file."""
    if isinstance(error, OSError) and error.strerror:
        return shortened(printable(f"{error.strerror}: {error.filename}" if error.filename else error.strerror))
    return shortened(printable(" ".join(str(error).split()))) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
