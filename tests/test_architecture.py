"""The fences: imports point down only, heavy libraries stay in their own files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GROUND = {"schema", "errors", "records", "seeding", "provenance"}
LIBRARY = {"datasets", "ladder", "grading", "gguf", "methods", "models_io", "rollout", "train"}
LIBRARY |= {"evaluation", "planning", "pretraining", "probes", "reporting", "studies"}

# What each part of dynamo_cli may import of this project (itself always; "" is the version).
ALLOWED = {
    "schema": set(),
    "errors": set(),
    "seeding": set(),
    "records": {"errors"},
    "provenance": {"", "records"},
    "methods": {"schema"},
    "ladder": GROUND,
    "pretraining": GROUND | {"ladder", "models_io"},
    "datasets": GROUND | {"ladder", "grading"},
    "grading": GROUND | {"ladder"},
    "models_io": GROUND,
    "gguf": GROUND | {"models_io"},
    "rollout": GROUND | {"models_io"},
    "train": GROUND | {"methods", "models_io", "grading", "rollout"},
    "probes": GROUND | {"methods", "grading", "rollout", "train"},
    "evaluation": set(),
    "studies": {"schema"},
    "planning": GROUND,
    "reporting": GROUND | {"evaluation"},
    "config": GROUND | LIBRARY,
    "progress": set(),
    "options": set(),
    "commands": {"errors", "options", "config", "planning", "progress", "provenance", "reporting"}
    | {"studies"},
    "cli": {"", "errors", "commands"},
    "__main__": {"cli"},
}
# A heavy library may be imported, at any depth of a file, by these alone.
ONLY_IN = {
    "vllm": {"dynamo_cli/rollout/vllm_engine.py", "dynamo_cli/rollout/vllm_transfer.py"},
    "deepspeed": {"dynamo_cli/train/deepspeed_engine.py"},
    "triton": {"dynamo_cli/train/fused_head.py"},
    "matplotlib": {"dynamo_cli/reporting/figures"},
    "gguf": {"dynamo_cli/gguf.py"},
    "transformers": {
        "dynamo_cli/gguf.py",
        "dynamo_cli/models_io.py",
        "dynamo_cli/rollout/hf_decoders.py",
        "dynamo_cli/rollout/hf_engine.py",
        "dynamo_cli/pretraining.py",
    },
    "math_verify": {"dynamo_cli/grading"},
}
SCIENCE = {"numpy", "torch", "pydantic", "dynamo_cli"} | set(sys.stdlib_module_names)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at module level and inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from dynamo_cli import cli` imports a part by name.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(path: Path) -> set[str]:
    """Which parts of dynamo_cli (and whether pipelines) a file imports."""
    found = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "dynamo_cli":
            part = rest.split(".")[0]
            found.add("" if part == "__version__" else part)
        elif top == "pipelines":
            found.add("pipelines")
    return found


SOURCES = sorted((ROOT / "dynamo_cli").rglob("*.py"))
EVERYTHING = SOURCES + sorted((ROOT / "pipelines").glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    part = path.relative_to(ROOT / "dynamo_cli").parts[0].removesuffix(".py")
    if part == "__init__":
        assert parts(path) == set()
        return
    allowed = ALLOWED[part] | {part} | ({"pipelines"} if part == "commands" else set())
    assert parts(path) <= allowed


def test_only_the_command_line_knows_the_pipelines_and_no_pipeline_knows_it():
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        assert not parts(path) & {"cli", "commands", "options", "progress"}, path


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_heavy_libraries_stay_in_their_own_files(library):
    users = {
        str(path.relative_to(ROOT))
        for path in EVERYTHING
        if any(name.split(".")[0] == library for name in imports(path))
    }
    strays = {u for u in users if not any(u.startswith(home) for home in ONLY_IN[library])}
    assert not strays


def test_the_science_needs_numpy_torch_and_pydantic_alone():
    for path in sorted((ROOT / "dynamo_cli" / "methods").glob("*.py")):
        assert {name.split(".")[0] for name in imports(path)} <= SCIENCE, path


def test_help_imports_nothing_heavy():
    heavy = {"torch", "transformers", "pandas", "numpy", "matplotlib", "pydantic", "vllm"}
    code = f"import sys, dynamo_cli.cli; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_stage_command_and_pipeline_share_a_name():
    from dynamo_cli.cli import app

    stages = {
        name.split("_")[0] for name in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    }
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    pipelines = {path.stem for path in (ROOT / "pipelines").glob("[!_]*.py")}
    assert stages <= pipelines <= commands


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in EVERYTHING
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 330
    }
    assert not long
