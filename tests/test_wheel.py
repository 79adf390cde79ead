"""The wheel, built from a copy of the repository and opened: all modules, what is shipped, and a demo that works.

No environment is made: the wheel is unpacked beside the packages that are there, far from the repository.
"""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import weightedit

ROOT = Path(__file__).parent.parent
KEPT = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel's files are."""
    place = tmp_path_factory.mktemp("wheel")
    source, wheels, site = place / "source", place / "wheels", place / "site"
    no_cache = shutil.ignore_patterns("__pycache__")
    for folder in ("weightedit", "checkpoints"):
        shutil.copytree(ROOT / folder, source / folder, ignore=no_cache)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheels.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def test_it_holds_every_module_and_what_is_shipped(unpacked: Path) -> None:
    def files(root: Path, pattern: str) -> set[str]:
        return {path.relative_to(root).as_posix() for path in root.glob(pattern) if "__pycache__" not in path.parts}

    assert files(unpacked, "weightedit/**/*.py*") == files(ROOT, "weightedit/**/*.py*")
    assert (unpacked / "weightedit" / "py.typed").is_file()
    shipped = {name for name in files(ROOT, "checkpoints/*/*") if Path(name).name in KEPT}
    assert files(unpacked / "weightedit", "checkpoints/*/*") == shipped and len(shipped) >= 3 * 6
    assert {path.name for path in unpacked.iterdir()} == {
        "weightedit",
        f"weightedit-{weightedit.__version__}.dist-info",
    }


def test_the_version_is_stated_once() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == weightedit.__version__


def test_the_demo_works_far_from_the_repository(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys; from weightedit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--count", "1", "--editor", "mnist-dilate-predictive"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "editor mnist-dilate-predictive" in done.stdout and (tmp_path / "demo.png").stat().st_size
