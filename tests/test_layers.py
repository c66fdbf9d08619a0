"""The package reads top to bottom: a module imports only from the layers above its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "grit_lite"

# One line per layer. This list is the architecture; the tree in the README repeats it for people.
LAYERS = [
    ["errors", "compat"],
    ["processes"],
    ["boxes", "recipe", "machine", "shapes"],
    ["fitting"],
    ["answer"],
    ["tiny"],
    ["triplets"],
    ["scorers"],
    ["judge"],
    ["rewards"],
    ["attacks"],
    ["families"],
    ["vlm"],
    ["packing"],
    ["rollout"],
    ["engine"],
    ["sharing"],
    ["backends"],
    ["memory"],
    ["run"],
    ["pages"],
    ["trainer", "evaluate", "report"],
    ["screen", "alarms", "stopping", "retrying"],
    ["chat"],
    ["export", "lmms", "evaluating"],
    ["training", "doctor"],
    ["cli"],
    ["__main__"],
]
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "unsloth",
    "vllm",
}
LIGHT = [
    "errors",
    "compat",
    "processes",
    "boxes",
    "recipe",
    "machine",
    "shapes",
    "fitting",
    "answer",
    "triplets",
    "scorers",
    "judge",
    "rewards",
    "attacks",
    "families",
    "run",
    "pages",
    "report",
    "screen",
    "alarms",
    "stopping",
    "cli",
]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_name(path: Path) -> str:
    """`backends/unsloth.py` and `backends/__init__.py` both belong to the layer of `backends`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write absolute imports, so that this test can see them"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_layers_above_its_own(path):
    me = layer_name(path)
    assert me in DEPTH, f"{me} has no layer yet: add it to LAYERS and to the tree in the README"
    used = {name.split(".")[1] for name in imports(path) if name.startswith("grit_lite.")} - {me, "__version__"}
    assert used <= DEPTH.keys(), f"{me} imports {used - DEPTH.keys()} from the package root; import its module"
    backwards = sorted(name for name in used if DEPTH[name] >= DEPTH[me])
    assert not backwards, f"{me} (layer {DEPTH[me]}) may not import {backwards}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_module_does_not_wait_for_torch(name):
    files = [path for path in SOURCES if layer_name(path) == name]
    heavy = {used.split(".")[0] for path in files for used in imports(path, top_level_only=True)} & HEAVY
    assert not heavy, f"{name} imports {sorted(heavy)} at the top; import them inside the function that needs them"


@pytest.mark.parametrize("name", ["training", "chat", "evaluate", "evaluating", "export"])
def test_a_command_imports_nothing_that_unsloth_rewrites_before_it_opens_a_backend(name):
    code = f"import grit_lite.{name}, sys; print(*sorted({{'transformers', 'peft', 'trl'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_one_file_may_import_unsloth():
    users = {path.name for path in SOURCES if any(name.split(".")[0] == "unsloth" for name in imports(path))}
    assert users <= {"unsloth.py"}


def test_vllm_is_imported_in_one_file_and_not_at_its_top():
    users = {path.name for path in SOURCES if any(name.split(".")[0] == "vllm" for name in imports(path))}
    top = [path for path in SOURCES if any(name.split(".")[0] == "vllm" for name in imports(path, top_level_only=True))]
    assert (users, top) == ({"engine.py"}, [])
