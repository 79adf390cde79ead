"""Where a checkpoint is: a folder, one that comes with the package, or a repository on the Hugging Face hub.

Here: finding it. Not here: what is in it (checkpoint.py), and which class it is of (pretrained.py).
"""

import re
from pathlib import Path

from weightedit.errors import FileFormatError
from weightedit.files.saving import is_there

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
HUB = "hf://"
SHIPPED = "checkpoints"
"""Name of the folder that holds the shipped ones, in the package or in a clone of the repository."""

_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def shipped() -> dict[str, Path]:
    """Name -> folder of the checkpoints that come with weightedit: inside the package, or beside it in a clone."""
    for place in (_PACKAGE / SHIPPED, _PACKAGE.parent / SHIPPED):
        if found := {config.parent.name: config.parent for config in sorted(place.glob(f"*/{CONFIG}"))}:
            return found
    return {}


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; the network is touched for a hub name alone.

    Args:
        source: a folder; or a string, which may also be the name of a shipped checkpoint ("mnist-multi", or
            "checkpoints/mnist-multi", from wherever one works) or "owner/name" on the hub. Folders come first. A
            string whose first part is a folder here is a path; "hf://owner/name" is always the hub's.
        revision: branch, tag or commit on the hub; unused otherwise.

    Raises:
        FileFormatError: nothing there. HF_HUB_OFFLINE=1 is respected.
    """
    folder, known = Path(source), shipped()
    if is_there(folder) and ((folder / CONFIG).is_file() or str(source) not in known):
        return folder
    if isinstance(source, str):
        if (name := source.removeprefix(f"{SHIPPED}/").rstrip("/")) in known:
            return known[name]
        repository, owner = source.removeprefix(HUB), source.partition("/")[0]
        is_path = source == repository and (owner == SHIPPED or Path(owner).is_dir())
        if _HUB_NAME.fullmatch(repository) and not folder.exists() and not is_path:
            return _download(repository, revision)
    where = "" if folder.is_absolute() else f" in {Path.cwd()}"
    raise FileFormatError(
        f"{source} {'is a file' if folder.exists() else f'does not exist{where}'}; expected a checkpoint folder "
        f"({', '.join(FILES)}), the name of a shipped one ({', '.join(known) or 'this copy of weightedit has none'}), "
        "or owner/name on the Hugging Face hub: correct it."
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileFormatError(
            f"{name!r} is no folder in {Path.cwd()}, and the hub did not give it ({type(error).__name__}: {error}); "
            "expected a folder or a hub name: check the path or the name, unset HF_HUB_OFFLINE if it is set, "
            "or download the checkpoint by hand and pass its folder"
        ) from error
