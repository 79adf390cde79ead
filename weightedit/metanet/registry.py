"""The metanetworks by name: one line each. A checkpoint says which one it holds, a task which one to build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightedit.errors import SpecError
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.scalegmn import ScaleGMN, ScaleGMNConfig

METANETS: dict[str, tuple[type[Any], type[Any]]] = {
    "scalegmn": (ScaleGMN, ScaleGMNConfig),
    "mlp": (FlatMLP, FlatMLPConfig),
}


def build_metanet(name: str, config: Mapping[str, object]) -> Metanetwork:
    """The metanetwork `name` from the plain data of its config.

    Raises SpecError on an unknown name or a config that does not fit it.
    """
    if name not in METANETS:
        raise SpecError(f"metanetwork {name!r} is unknown; expected one of {', '.join(METANETS)}.")
    kind, config_kind = METANETS[name]
    return kind(config_kind.from_dict(config))


def describe_metanet(metanet: Metanetwork) -> tuple[str, dict[str, object]]:
    """Name and plain config of a metanetwork; `build_metanet` makes the same one, without its weights."""
    for name, (kind, _) in METANETS.items():
        if type(metanet) is kind:
            return name, metanet.config.to_dict()  # type: ignore[attr-defined, operator]
    raise SpecError(
        f"{type(metanet).__name__} is not registered; expected one of {', '.join(METANETS)}: add a line there."
    )
