"""The shape of the package: imports point downward, nothing heavy comes uninvited, names are as listed."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.roots import synthetic_root

PACKAGE = Path(__file__).parent.parent / "reben_cloud"

ROOMS = (
    ("errors", "wording"),
    ("files", "schema", "sampling", "spread", "ranking"),
    ("about",),
    ("store",),
    ("formats",),
    ("bigearthnet",),
    ("grid", "root"),
    ("stream",),
    ("catalog",),
    ("search", "torch"),
    ("sources", "views"),
    ("build",),
    ("export", "layers"),
    ("hosted", "scenes"),
    ("opening",),
    ("training",),
    ("serve", "checks", "bucket"),
    ("cli",),
)
"""The rooms of the house from the bottom: one imports only those of the lines above it, never up or sideways; the
modules of one room may import each other, in no circle. `reben_cloud` itself re-exports and is imported by nothing
inside. `grid` is a public name of `bigearthnet.grid`, `opening` of what `root` and `export` can open."""

LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

FACES = {"root.dataset": "Dataset", "root.selection": "Selection"}
"""The one exception: these classes call up, by a late import in a method of one statement."""

ABOVE_FACES = {"catalog", "export", "search", "views"}
"""Where they may call."""

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


def upward(module):
    """What `module` imports that is not below it."""
    unit = unit_of(module)
    return {
        name
        for name in imports_of(module)
        if unit_of(name) != unit and LEVEL.get(unit_of(name), 99) >= LEVEL[unit]
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    assert unit_of(module) in LEVEL, f"{unit_of(module)} has no place: give it a line in ROOMS"

    wrong = upward(module)
    if module in FACES:
        wrong = {name for name in wrong if unit_of(name) not in ABOVE_FACES}

    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, which is not below it"


@pytest.mark.parametrize(("module", "name"), FACES.items())
def test_a_face_calls_up_from_a_method_of_one_statement(module, name):
    tree = ast.parse(source_of(module).read_text())
    (face,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = {node for node in face.body if isinstance(node, ast.FunctionDef)}

    calls = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        late = [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom) and is_above_faces(n.module)]
        if late:
            calls.add(function.name)
            documented, *rest = function.body
            assert function in methods
            assert rest[0] is late[0], f"{function.name}: after the docstring comes the import"
            assert len(rest) == 2, f"{function.name}: and then one statement"
            assert isinstance(documented, ast.Expr)
            assert isinstance(rest[1], ast.Return)
            assert not function.args.vararg
            assert not function.args.kwarg
            spelled = [*function.args.args, *function.args.kwonlyargs][1:]
            assert all(argument.annotation is not None for argument in spelled)
    assert calls
    top = [n for n in walk(tree) if isinstance(n, ast.ImportFrom) and n.col_offset == 0]
    assert not [n.module for n in top if is_above_faces(n.module)]


def is_above_faces(module):
    return module.startswith("reben_cloud.") and module.split(".")[1] in ABOVE_FACES


@pytest.mark.slow
def test_no_module_imports_itself_by_a_detour():
    graph = {
        module: {name for name in imports_of(module) if name != module}
        - (upward(module) if module in FACES else set())
        for module in MODULES
    }

    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module):
    if unit_of(module) == "cli":
        return
    calls = [
        node for node in ast.walk(ast.parse(source_of(module).read_text())) if isinstance(node, ast.Call)
    ]

    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def modules_after(code, *arguments):
    """Names of all modules that a fresh process has loaded after some statements."""
    code = f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, *arguments]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize("statement", ["import reben_cloud", "import reben_cloud.cli"])
def test_importing_loads_nothing_heavy(statement):
    loaded = modules_after(statement) & {"torch", "lmdb", "rasterio", "boto3", "dask", "geopandas", "timm"}

    assert not loaded


def test_importing_loads_only_what_reading_needs():
    """Not a bound in seconds, which a busy machine breaks: the rooms, and the packages of others."""
    needed = "numpy, obstore, pyarrow.compute, pyarrow.parquet, xxhash"

    loaded, before = modules_after("import reben_cloud"), modules_after(f"import {needed}")

    rooms = {name.split(".")[1] for name in loaded if name.startswith("reben_cloud.")}
    reading = {"bigearthnet", "errors", "files", "formats", "grid", "root", "sampling", "schema", "store"}
    assert rooms <= {"opening", *reading}
    more = {name.split(".")[0] for name in loaded} - {name.split(".")[0] for name in before}
    assert more - set(sys.stdlib_module_names) == {"reben_cloud"}


def test_a_first_search_loads_neither_pandas_nor_what_draws(tmp_path):
    """pandas alone takes longer than a search of all rows."""
    code = (
        "import sys, reben_cloud; found = reben_cloud.open(sys.argv[1]).search(split='train', country='Austria', "
        "labels='Pastures', bbox=(9, 46, 17, 49), datetime='2017/2018', season='summer', recommended=True, "
        "sortby='-datetime', limit=5); found.patch_ids"
    )
    synthetic_root(tmp_path, 8)

    loaded = {name.split(".")[0] for name in modules_after(code, str(tmp_path))}

    assert not loaded & {"pandas", "pystac", "matplotlib", "xarray", "zarr", "torch", "dask"}


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
