"""The shape of the package: imports point downward, nothing heavy comes uninvited, names are as listed."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "reben_cloud"

LAYERS = (
    ("clutter", "errors", "paths", "torchvision_ops"),
    ("bands", "labels", "sampling", "digest", "local_file"),
    ("grid", "patch", "picture", "store", "placement", "recipe", "manifest", "elevation", "provenance"),
    ("parquet",),
    ("root",),
    ("formats", "reference_map", "country", "processors", "metadata", "metrics", "cql"),
    ("sources",),
    ("catalog", "recognise", "raster", "stream"),
    ("export",),
    ("build.spool", "build.lease"),
    ("build.plan",),
    ("build.tasks",),
    ("build.executors", "build.publish", "build.account"),
    ("build", "search"),
    ("prepare",),
    ("lmdb_root",),
    ("dataset", "model_input"),
    ("torch", "models"),
    ("evaluate", "modelcard", "datamodule", "claims"),
    ("report",),
    ("train", "serve", "verify", "bucket", "doctor", "demo"),
    ("cli",),
)
"""Modules and packages of a line import only those of the lines above; the modules of one package may
import each other, in no circle. `reben_cloud` itself re-exports and is imported by nothing inside."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)


def source_of(module):
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def walk(node):
    """The nodes below `node`, but for what stands under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from walk(child)


def imports_of(module):
    """Modules of the package that `module` imports, at top level or inside, but for type checking alone."""
    for node in walk(ast.parse(source_of(module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "reben_cloud":
                continue
            inside = name.removeprefix("reben_cloud").lstrip(".")
            while inside and inside not in MODULES:
                inside = inside.rpartition(".")[0]
            if inside:
                yield inside


def unit_of(module):
    return module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    unit = unit_of(module)
    assert unit in LEVEL, f"{unit} has no layer: give it a line in LAYERS"

    others = {unit_of(name) for name in imports_of(module)} - {unit}
    upward = sorted(name for name in others if LEVEL.get(name, 99) >= LEVEL[unit])

    assert not upward, f"{module} imports {', '.join(upward)}, which is not below it"


def test_no_module_imports_itself_by_a_detour():
    graph = {module: {name for name in imports_of(module) if name != module} for module in MODULES}

    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module):
    if module == "cli":
        return
    calls = [
        node for node in ast.walk(ast.parse(source_of(module).read_text())) if isinstance(node, ast.Call)
    ]

    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@pytest.mark.parametrize("statement", ["import reben_cloud", "import reben_cloud.cli"])
def test_importing_loads_nothing_heavy(statement):
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    loaded = set(json.loads(output)) & {"torch", "lmdb", "rasterio", "boto3", "dask", "geopandas", "timm"}
    assert not loaded


def test_public_names_are_those_listed():
    import reben_cloud

    listed = reben_cloud.__all__
    assert listed == sorted(set(listed), key=listed.index)
    assert len(listed) <= 20
    modules = {name.split(".")[0] for name in MODULES}
    public = {name for name in dir(reben_cloud) if not name.startswith("_")} - modules - {"annotations"}
    assert public == set(listed) - modules - {"__version__"}
    for name in listed:
        assert getattr(reben_cloud, name) is not None
