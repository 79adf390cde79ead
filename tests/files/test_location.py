"""Where a checkpoint is: folders, shipped names and hub names, told apart without asking the network."""

import re
from pathlib import Path

import pytest

from weightedit.errors import FileFormatError
from weightedit.files import location
from weightedit.files.location import CONFIG, FILES, locate, shipped

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """An own working directory, and what the hub is asked for."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_the_shipped_ones_are_those_of_the_repository():
    assert set(shipped()) == {config.parent.name for config in (REPOSITORY / "checkpoints").glob("*/config.json")}
    assert {"mnist-multi", "small-classifier", "refine-rule"} <= set(shipped())


def test_those_inside_the_package_come_first(tmp_path, monkeypatch):
    for place in ("outside/checkpoints/other", "outside/package/checkpoints/own"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / CONFIG).touch()
    monkeypatch.setattr(location, "_PACKAGE", tmp_path / "outside" / "package")
    assert list(shipped()) == ["own"]
    monkeypatch.setattr(location, "_PACKAGE", tmp_path / "outside" / "elsewhere")
    assert list(shipped()) == ["other"]
    monkeypatch.setattr(location, "_PACKAGE", tmp_path)
    assert shipped() == {}
    with pytest.raises(FileFormatError, match="this copy of weightedit has none"):
        locate("mnist-multi")


@pytest.mark.parametrize("name", ["mnist-multi", "checkpoints/mnist-multi", "checkpoints/mnist-multi/"])
def test_a_shipped_name_works_from_everywhere(asked, name):
    assert locate(name) == shipped()["mnist-multi"] and not asked


def test_a_folder_comes_before_a_shipped_name_if_it_is_a_checkpoint(asked, tmp_path):
    (tmp_path / "mnist-multi").mkdir()
    assert locate("mnist-multi") == shipped()["mnist-multi"]
    (tmp_path / "mnist-multi" / CONFIG).touch()
    assert locate("mnist-multi") == Path("mnist-multi")


@pytest.mark.parametrize("name", ["owner/name", "hf://owner/name"])
def test_a_hub_name_goes_through_the_client(asked, tmp_path, name):
    assert locate(name, "v1") == tmp_path
    assert asked == [("owner/name", {"revision": "v1", "allow_patterns": list(FILES)})]


@pytest.mark.parametrize(
    "source",
    ["mnist-mutli", "/no/such/folder", "./model", "../x", "~/model", "a/b/c", "", "-", Path("owner/name"),
     Path("mnist-multi"), "checkpoints/rule", "checkpoints", "runs/typo", "file.bin", "hf://name"],
)  # fmt: skip
def test_nothing_else_asks_the_hub(asked, tmp_path, source):
    (tmp_path / "runs").mkdir()
    (tmp_path / "file.bin").touch()
    if source == "":
        source = "model.safetensors"
        Path(source).touch()
    names = ", ".join(shipped())
    with pytest.raises(FileFormatError, match=f"expected a checkpoint folder .*{names}.* or owner/name on the") as told:
        locate(source)
    found = "is a file" if Path(source).is_file() else "does not exist"
    assert str(told.value).startswith(f"{source} {found}") and not asked


def test_offline_and_not_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        FileFormatError,
        match=f"'owner/name' is no folder in {re.escape(str(tmp_path))}, and the hub did not give it .*HF_HUB_OFFLINE",
    ):
        locate("owner/name")
