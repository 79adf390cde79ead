"""The house rules that a reader may rely on, checked on the source: imports point down, nothing prints."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "weightedit"

# Bottom to top: a module imports only from its own folder and from those that stand before it.
ORDER = (
    ["errors", "capacity", "files", "network", "graph", "testing", "plots", "training", "inr", "data"]
    + ["metanet", "delta", "prediction", "optim", "editing", "metatrain", "loading", "door", "cli", "__main__"]
)  # fmt: skip


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


def folder(module: str) -> str:
    return module.partition(".")[0]


def used_by(module: str) -> set[str]:
    return {full.removeprefix("weightedit.") for full in imported(modules()[module])} & set(modules())


def test_every_module_has_its_place() -> None:
    assert {folder(module) for module in modules()} == set(ORDER)


def test_imports_point_down() -> None:
    for module in modules():
        above = {used for used in used_by(module) if ORDER.index(folder(used)) > ORDER.index(folder(module))}
        assert not above, f"{module} imports {above}, which stand above it"


def test_imports_do_not_go_in_circles() -> None:
    TopologicalSorter({module: used_by(module) for module in modules()}).prepare()


def test_the_library_does_not_print() -> None:
    for name in set(modules()) - {"cli.main"}:
        calls = [node.func for node in ast.walk(modules()[name]) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], name


def test_accelerate_has_one_importer() -> None:
    users = {name for name, tree in modules().items() if any(i.split(".")[0] == "accelerate" for i in imported(tree))}
    assert users == {"training.loop"}


def test_nothing_unpickles() -> None:
    for name, tree in modules().items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            if (name, function) == ("data.like", "torch.save"):
                continue  # a user's own .pth, read as plain tensors, is written as it came
            assert not function.startswith(("pickle.", "dill.", "cloudpickle.", "torch.save")), name
            assert function != "torch.load" or "weights_only=True" in ast.unparse(call), name


def test_tasks_use_only_the_library() -> None:
    """Not each other, which a script can by bare name too. One baseline lives in tests/: a slow twin that is timed."""
    paths = sorted((ROOT / "tasks").glob("*.py"))
    own, twin = {"tasks", "tests", *(path.stem for path in paths)}, "tests.message_passing_twin"
    for path in paths:
        found = imported(ast.parse(path.read_text(encoding="utf-8")))
        found -= {name for name in found if path.stem == "benchmark" and name.startswith(twin)}
        assert not {name for name in found if folder(name) in own}, path.name


def test_import_is_light() -> None:
    heavy = ["torch_geometric", "datasets", "accelerate", "sklearn", "cv2", "matplotlib", "pyarrow", "higher"]
    heavy.append("torch._dynamo")
    code = (
        "import sys, weightedit, weightedit.editing.editor, weightedit.data.weight_sets, weightedit.inr.fitting, "
        f"weightedit.training.loop; print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_files_of_tests_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names), "pytest takes two files of one name for one module"
