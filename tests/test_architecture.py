"""The house rules that a reader may rely on, checked on the source: imports point down, nothing prints."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "weightedit"

# Bottom to top: a module imports only from lines above its own.
ORDER = [  # fmt: skip
    "errors",
    "capacity",
    "reading",
    "schema",
    "saving",
    "checkpoint",
    "layer",
    "convolution",
    "stand_in",
    "tracing",
    "spec",
    "wiring",
    "module_wiring",
    "link",
    "module_links",
    "graph_spec",
    "features",
    "symmetry",
    "reparametrisation",
    "graph",
    "indexed",
    "graph_layout",
    "ragged",
    "canonicalization",
    "probing",
    "testing",
    "metanet.base",
    "metanet.layers",
    "metanet.forecast",
    "metanet.heads",
    "metanet.scalegmn",
    "metanet.paper_scalegmn_config",
    "metanet.paper_scalegmn_layers",
    "metanet.paper_scalegmn",
    "metanet.neural_graph_layers",
    "metanet.neural_graph_config",
    "metanet.neural_graph_ends",
    "metanet.neural_graphs",
    "metanet.statistics",
    "metanet.pyg_adapter",
    "metanet.baselines",
    "metanet.weight_space",
    "metanet.chains",
    "metanet.nfn",
    "metanet.dws",
    "metanet.monomial",
    "metanet.registry",
    "delta",
    "inr.convention",
    "inr.siren",
    "inr.stack",
    "metanet.prediction",
    "inr.widening",
    "inr.fitting_kernel",
    "inr.fitting_loop",
    "inr.fitting",
    "optim.rule",
    "optim.unitwise",
    "optim.rule_module",
    "optim.gauge",
    "optim.warrant",
    "optim.hand_designed",
    "optim.muon",
    "optim.mlp_features",
    "optim.mlp_rule",
    "optim.metanet_features",
    "optim.metanet_passes",
    "optim.metanet_rule_config",
    "optim.metanet_rule",
    "optim.moments",
    "optim.memory",
    "optim.learned_rule",
    "optim.naming",
    "optim.stepping",
    "optim.loading",
    "optim.optimizer",
    "optim.higher_bridge",
    "editing.operations",
    "editing.evaluation",
    "editing.rendering_problem",
    "editing.curvature",
    "editing.guidance",
    "editing.refinement",
    "editing.editor",
    "editing.predictor",
    "editing.predictive_editor",
    "editing.loading",
    "metatrain.draws",
    "metatrain.optimizee",
    "metatrain.image_optimizees",
    "metatrain.unroll",
    "metatrain.higher_unroll",
    "metatrain.estimators",
    "metatrain.memory",
    "data.images",
    "metatrain.problems",
    "data.foreign_inrs",
    "data.inr_files",
    "data.inr_modules",
    "data.weight_set_tables",
    "data.cnn_zoo",
    "data.small_cnn_zoo",
    "data.cnn_fitting",
    "data.weight_set_cards",
    "data.weight_sets",
    "data.inr_fitting",
    "run_plan",
    "run_state",
    "training",
    "plots",
    "checks",
    "demo",
    "description",
    "preview",
    "arguments",
    "cli",
]


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


def test_imports_point_down() -> None:
    for place, name in enumerate(ORDER):
        used = {full.removeprefix("weightedit.") for full in imported(modules()[name]) if "weightedit." in full}
        above = used.intersection(ORDER[place:])
        assert not above, f"{name} imports {above}, which stand above it"


def test_the_library_does_not_print() -> None:
    for name in set(ORDER) - {"cli"}:
        calls = [node.func for node in ast.walk(modules()[name]) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], name


def test_accelerate_has_one_importer() -> None:
    users = {name for name, tree in modules().items() if any(i.split(".")[0] == "accelerate" for i in imported(tree))}
    assert users == {"training"}


def test_nothing_unpickles() -> None:
    for name, tree in modules().items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            assert not function.startswith(("pickle.", "dill.", "cloudpickle.", "torch.save")), name
            assert function != "torch.load" or "weights_only=True" in ast.unparse(call), name


def test_tasks_use_only_the_library() -> None:
    for path in sorted((ROOT / "tasks").glob("*.py")):
        inside = {name for name in imported(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("tasks")}
        assert not inside, path.name


def test_import_is_light() -> None:
    heavy = ["torch_geometric", "datasets", "accelerate", "sklearn", "cv2", "matplotlib", "pyarrow", "higher"]
    code = (
        "import sys, weightedit, weightedit.editing.editor, weightedit.data.weight_sets, weightedit.inr.fitting, "
        f"weightedit.training; print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
