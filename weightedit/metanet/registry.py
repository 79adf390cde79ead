"""The metanetworks by name: one line each. A checkpoint says which one it holds, a task which one to build.

An entry may fix fields of its config: two names then share a class. A config that names the field itself is taken at
its word when it comes from a checkpoint (`build_metanet`), and refused when it comes from a person (`make_metanet`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from torch import nn

from weightedit.errors import SpecError
from weightedit.files.reading import shortened
from weightedit.graph.frame import Frame
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.functionals.dws import DWS, DWSConfig
from weightedit.metanet.functionals.monomial import Monomial, MonomialConfig
from weightedit.metanet.functionals.nfn import NFN, NFNConfig
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metanet.neural_graphs.config import NGGNNConfig, NGTConfig
from weightedit.metanet.neural_graphs.network import NGGNN, NGT
from weightedit.metanet.scalegmn.config import ScaleGMNConfig
from weightedit.metanet.scalegmn.network import ScaleGMN
from weightedit.metanet.statistics import WeightStatistics, WeightStatisticsConfig
from weightedit.network.graph_spec import AnySpec, GraphSpec, specs_of


@dataclass(frozen=True)
class Entry:
    """A metanetwork's class, the class of its config, and the config fields that its name fixes."""

    kind: type[Any]
    config: type[Any]
    fixed: Mapping[str, object] = field(default_factory=dict)


class MetanetConfig(TypedDict):
    """A metanetwork in the config.json of a checkpoint: what `describe_metanet` gives."""

    name: str
    config: dict[str, Any]


METANETS: dict[str, Entry] = {
    "gauge-gmn": Entry(GaugeGMN, GaugeGMNConfig, {"bidirectional": False}),
    "gauge-gmn-b": Entry(GaugeGMN, GaugeGMNConfig, {"bidirectional": True}),
    "scalegmn": Entry(ScaleGMN, ScaleGMNConfig, {"bidirectional": False}),
    "scalegmn-b": Entry(ScaleGMN, ScaleGMNConfig, {"bidirectional": True}),
    "ng-gnn": Entry(NGGNN, NGGNNConfig),
    "ng-t": Entry(NGT, NGTConfig),
    "monomial": Entry(Monomial, MonomialConfig),
    "nfn-np": Entry(NFN, NFNConfig, {"variant": "np"}),
    "nfn-hnp": Entry(NFN, NFNConfig, {"variant": "hnp"}),
    "dws": Entry(DWS, DWSConfig),
    "mlp": Entry(FlatMLP, FlatMLPConfig),
    "statistics": Entry(WeightStatistics, WeightStatisticsConfig),
}

# Config fields that the networks decide; all of them agree, or the metanetwork refuses the odd ones when they come.
_FROM_NETWORKS: dict[str, Callable[[Sequence[Any]], object]] = {
    "inputs": lambda specs: specs[0].widths[0],
    "outputs": lambda specs: specs[0].widths[-1],
    "widths": lambda specs: specs[0].widths,
    "depth": lambda specs: specs[0].depth,
    "channels": lambda specs: Frame.of(*specs).channels,
    "kernel": lambda specs: (Frame.of(*specs).height, Frame.of(*specs).width),
    "link_kinds": lambda specs: max(spec.link_kinds if isinstance(spec, GraphSpec) else 1 for spec in specs),
    "activations": MonomialConfig.activations_of,
}
# Metanetworks that tell links apart, and so treat networks that are no chains.
_FOR_GRAPHS = [name for name, entry in METANETS.items() if "link_kinds" in {item.name for item in fields(entry.config)}]


def entry(name: str) -> Entry:
    """The entry `name`. Raises SpecError on an unknown one."""
    if name not in METANETS:
        raise SpecError(f"metanetwork {shortened(name)} is unknown; expected one of {', '.join(METANETS)}.")
    return METANETS[name]


def build_metanet(name: str, config: Mapping[str, object]) -> Metanetwork:
    """The metanetwork `name` from the plain data of its whole config, as a checkpoint holds it.

    Raises SpecError on an unknown name or a config that does not fit it.
    """
    if name in ("scalegmn", "scalegmn-b") and "node_width" in config:  # what gauge-gmn was called once
        name = name.replace("scalegmn", "gauge-gmn")
    found = entry(name)
    return found.kind(found.config.from_dict({**found.fixed, **config}))


def make_metanet(
    name: str, networks: nn.Module | AnySpec | Sequence[nn.Module | AnySpec], **options: object
) -> Metanetwork:
    """A fresh metanetwork `name` for such networks: what they decide is read off them, the rest is its default.

    Args:
        name: see METANETS.
        networks: a module or spec that it must treat, or several; GraphSpecs for those with link_kinds alone.
        options: fields of its config, e.g. layers=6, embedding=128.

    Raises SpecError on an unknown name or option, one that contradicts the name, or a GraphSpec with one for chains.
    """
    found, known, specs = entry(name), {item.name for item in fields(entry(name).config)}, specs_of(networks)
    if not specs:
        raise SpecError("got no network; expected at least one spec of the networks to treat.")
    if unknown := sorted(set(options) - known):
        raise SpecError(f"{name} has no option {', '.join(unknown)}; expected some of {', '.join(sorted(known))}.")
    graphs = any(isinstance(spec, GraphSpec) for spec in specs)
    if graphs and "link_kinds" not in known:
        raise SpecError(
            f"got {name} for a network that is no chain; expected one of {', '.join(_FOR_GRAPHS)}: the others go "
            "through networks level by level."
        )
    for key, value in found.fixed.items():
        if options.get(key, value) != value:
            raise SpecError(f"got {key} {options[key]} with {name}, which is {key} {value}; take another name.")
    values = {key: read(specs) for key, read in _FROM_NETWORKS.items() if key in known}
    if "probes" in known and (graphs or any(spec.channels > 1 for spec in specs)):
        values["probes"] = 0  # probes are for chains without convolutions
    return found.kind(found.config(**{**values, **found.fixed, **options}))


def describe_metanet(metanet: Metanetwork) -> tuple[str, dict[str, object]]:
    """Name and plain config of a metanetwork; `build_metanet` makes the same one, without its weights."""
    for name, found in METANETS.items():
        if type(metanet) is found.kind:
            config: dict[str, object] = metanet.config.to_dict()  # type: ignore[attr-defined, operator]
            if all(config[key] == value for key, value in found.fixed.items()):
                return name, config
    raise SpecError(
        f"{type(metanet).__name__} is not registered; expected one of {', '.join(METANETS)}: add a line there."
    )


def config_options(words: Sequence[str]) -> dict[str, Any]:
    """Config fields from words such as layers=6 or symmetry=sign, as a command line has them; values are JSON or text.

    Raises SpecError on a word without "=".
    """
    found: dict[str, Any] = {}
    for word in words:
        key, given, value = word.partition("=")
        if not key or not given:
            raise SpecError(f"got the option {word!r}; expected name=value, such as layers=6.")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        found[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return found
