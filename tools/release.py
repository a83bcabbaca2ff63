"""Build the distributions of admg and of admg-models, and show what they hold: python tools/release.py --out dist

Everything is built twice, and must be the same to the last bit. With --try VERSION, each wheel is also installed in a
fresh virtual environment with this version of torch, where `admg demo` and tests run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = {"manylinux": "-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "pure": "-py3-none-any.whl"}
"""Values of ADMG_WHEEL, and what the names of the wheels end with."""
NEVER = (".png", ".csv", "/tests/", "__pycache__")
"""Parts of names that no file of a wheel may have."""
TESTS = ["engine/test_native_norm.py", "engine/test_native_narrow.py", "engine/test_native_winograd.py"]
TESTS += ["engine/test_weight_gradient.py", "diffusion/test_diffusion.py", "samplers/test_guided_reference.py"]


def build(out: Path, environment: dict[str, str]) -> list[Path]:
    """Build the source distributions, and the wheels from them; return their paths, those of admg first."""
    line = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*line, "--sdist", str(ROOT)], env=environment, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = out.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        for kind in WHEELS:
            wheel = environment | {"ADMG_WHEEL": kind}
            subprocess.run([*line, "--wheel", str(unpacked)], env=wheel, check=True, stdout=subprocess.DEVNULL)
    wheels = [next(out.glob(f"*{ending}")) for ending in WHEELS.values()]
    subprocess.run([*line, str(ROOT / "models")], env=environment, check=True, stdout=subprocess.DEVNULL)
    return [sdist, *wheels, *sorted(out.glob("admg_models-*"))]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(path: Path) -> None:
    """Print the size, the digest and the contents of a distribution."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    else:
        with tarfile.open(path) as archive:
            sizes = {entry.name.partition("/")[2]: entry.size for entry in archive if entry.isfile()}
    print(f"\n{path.name}\n  {path.stat().st_size / 1e6:.2f} MB, {len(sizes)} files, sha256 {digest(path)}")
    folders: Counter[str] = Counter()
    for name, size in sizes.items():
        folders["/".join(name.split("/")[:2]) if "/" in name else name] += size
    for name, size in folders.most_common(12):
        print(f"  {size / 1e6:8.3f} MB  {name}")


def check(path: Path) -> None:
    """Check the files and the tag of a wheel. Exits with a line that names what is wrong."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    bad = [name for name in names if any(part in name for part in NEVER)]
    kernels = [name for name in names if name.endswith(".so")]
    if bad or "admg/py.typed" not in names or len(kernels) != (0 if path.name.endswith("any.whl") else 2):
        sys.exit(f"{path.name}: unexpected or missing files: {bad or kernels or 'py.typed'}")
    if kernels:
        shown = subprocess.run(
            [sys.executable, "-m", "auditwheel", "show", str(path)], capture_output=True, text=True, check=True
        ).stdout
        text = " ".join(shown.split())
        print(f"  auditwheel: {text}")
        if 'following platform tag: "manylinux_2_17_x86_64"' not in text:
            sys.exit(f"{path.name}: its kernels need a newer system than its name says")


def try_out(wheel: Path, torch: str) -> None:
    """Install a wheel with a version of torch in a fresh environment, and run `admg` and tests outside the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder, "venv"), with_pip=True)
        python = str(Path(folder, "venv", "bin", "python"))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

        def run(*words: str) -> None:
            print("$", *words, flush=True)
            subprocess.run([python, *words], cwd=folder, env=environment, check=True)

        run("-m", "pip", "install", "-q", str(wheel), f"torch=={torch}", "pytest", "scipy", "scikit-learn")
        kernels = "from admg.engine import cpu; print('kernels:', cpu.available())"
        run("-c", f"import torch, admg; print(admg.__file__, torch.__version__); {kernels}")
        run("-m", "admg", "doctor", "--seconds", "1")
        run("-m", "admg", "demo", "--out", "demo")
        run("-m", "pytest", "-p", "no:cacheprovider", *(str(ROOT / "tests" / name) for name in TESTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="output folder, new or empty (default: dist)")
    parser.add_argument("--try", dest="versions", action="append", default=[], metavar="VERSION",
                        help="version of torch to try each wheel with; may be repeated")  # fmt: skip
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    args.out.mkdir(parents=True, exist_ok=True)
    environment = {"SOURCE_DATE_EPOCH": "1577836800"} | os.environ  # 2020; the builder needs some fixed time
    built = build(args.out, environment)
    with tempfile.TemporaryDirectory() as again:
        for path, other in zip(built, build(Path(again), environment), strict=True):
            if digest(path) != digest(other):
                sys.exit(f"{path.name} differs when it is built again")
    wheels = built[1 : 1 + len(WHEELS)]  # of admg
    for path in built:
        describe(path)
        if path in wheels:
            check(path)
    print("\nbuilt twice, with the same digests")
    for wheel in wheels:
        for version in args.versions:
            try_out(wheel.resolve(), version)


if __name__ == "__main__":
    main()
