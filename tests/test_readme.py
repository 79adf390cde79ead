"""README is true: its Python blocks run, in order, in one namespace; its commands are the ones CI runs."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README, TASKS = ROOT / "README.md", ROOT / "tasks" / "README.md"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_blocks(path: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    assert blocks(path, "python")
    for block in blocks(path, "python"):
        exec(compile(block, path.name, "exec"), namespace)
    return namespace


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    namespace = run_blocks(README)
    assert tuple(namespace["pictures"].shape) == (4, 1, 56, 56)
    assert set(namespace["changed"]) == set(dict(namespace["net"].named_parameters()))


def test_python_blocks_of_the_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    namespace = run_blocks(TASKS)
    assert [set(delta) for delta in namespace["deltas"]] == [set(params) for params in namespace["several"]]
    assert set(namespace["changed"]) == set(dict(namespace["net"].named_parameters()))


def test_the_two_setup_commands_pin_torch() -> None:
    setup = [block for block in blocks(README, "bash") if "pip install" in block]
    assert len(setup) == 2
    assert all("torch==2.13.0" in block for block in setup)


@pytest.mark.parametrize("path", [README, TASKS, *sorted(ROOT.glob("checkpoints/*/README.md"))], ids=str)
def test_files_that_a_page_links_exist(path: Path) -> None:
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / name).exists(), name


def test_readme_is_for_someone_with_three_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 190
