"""README is true: its Python blocks run, in order, in one namespace; its commands are the ones CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    namespace: dict = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert tuple(namespace["pictures"].shape) == (4, 1, 56, 56)
    assert [set(delta) for delta in namespace["deltas"]] == [set(namespace["params"]), set(namespace["wide"])]
    assert set(namespace["changed"]) == set(dict(namespace["net"].named_parameters()))


def test_the_two_setup_commands_pin_torch() -> None:
    setup = [block for block in blocks("bash") if "pip install" in block]
    assert len(setup) == 2
    assert all("torch==2.13.0" in block for block in setup)


def test_files_that_readme_names_exist() -> None:
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
