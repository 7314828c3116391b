"""The tree is the architecture: who may import whom, what is private to whom, and how large things are.

It reads the source, and imports none of it. ``docs/architecture.md`` explains the packages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cos_ml"

# Modules of the root that any package may use: no stage of Spark ML among them.
HELPERS = {
    "broadcasts",
    "callbacks",
    "cancellation",
    "disks",
    "display",
    "errors",
    "gpus",
    "interfaces",
    "listeners",
    "optimizers",
    "paths",
    "processor",
    "python_worker",
    "spark_internals",
    "spec",
    "stores",
    "summary",
    "terminal",
    "thumbnails",
    "versions",
}

# Package -> what of cos_ml its modules may import, within functions too. The root may import everything.
ALLOWED = {
    "network": {"network", "data", "layers"},
    "data": {"data", "network"},
    "rank": {"rank", "network", "data"},
    "scoring": {"scoring", "network", "data"},
    "job": {"job", "rank", "network", "data"},
    "sources": {"sources", "network", "data"},
    "exports": {"exports", "network", "data", "sources"},
    "horovod_build": {"horovod_build", "job"},
    "caffe": {"caffe", "network", "optimizers"},
    "mlflow": {"mlflow", "estimator"},
    # It is to the stages what a program of the user's is; only cli.py imports it.
    "commands": {"commands", "caffe", "data", "network", "sources", "estimator", "model", "images", "params"},
}

# Package -> what of other projects its modules must not import, nor what they import when they are imported.
FORBIDDEN = {
    "rank": {"pyspark"},
    "caffe": {"pyspark"},
    "scoring": {"horovod"},
    "network": {"horovod"},
    "data": {"horovod"},
}

# Modules that run early in a rank or a task, and must start at once.
LIGHT = {
    "cos_ml.rank.__main__": {"pyspark", "tensorflow", "keras"},
    "cos_ml.data.columns": {"pyspark", "tensorflow", "keras"},
    "cos_ml.data.spool": {"pyspark", "tensorflow", "keras"},
}

# Module -> the project whose inside it uses, guarded; no other module may.
INTERNALS = {
    "cos_ml.spark_internals": "Spark",
    "cos_ml.network.keras_internals": "Keras and TensorFlow",
    "cos_ml.data.pandas_internals": "pandas",
    "cos_ml.job.rendezvous_server": "Horovod",
    "cos_ml.rank.petastorm_reader": "petastorm",
}

# Names that look private and are not: what Spark ML expects subclasses of its classes to define and to call, and
# what Python's own documentation describes.
HOOKS = {"_copyValues", "_dummy", "_fit", "_input_kwargs", "_resetUid", "_set", "_setDefault", "_transform", "_exit"}

# Functions whose body is longer than MAX_BODY lines -> why.
LONG: dict[str, str] = {}

MAX_BODY = 40  # lines, without the docstring
MAX_MODULE = 500  # lines
# Lines, without what reads Caffe's files and data sets, commands, exports, and what builds Horovod: what is there now,
# so that growth is a decision.
MAX_PACKAGE = 25_163  # lines
LEAVES = ("caffe", "commands", "exports", "horovod_build", "mlflow", "sources")

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
every_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def package_of(module: str) -> str:
    """ "rank" for cos_ml.rank.train; "" for the modules of the root."""
    top = ".".join(module.split(".")[:2])
    return top.removeprefix("cos_ml.") if top in packages() else ""


@cache
def packages() -> frozenset[str]:
    return frozenset(name for name, path in MODULES.items() if path.name == "__init__.py" and name != "cos_ml")


def imported(node: ast.AST, within_functions: bool) -> Iterator[str]:
    """The modules that are imported below ``node``, except for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield whole if whole in MODULES else str(child.module)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif within_functions or not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield from imported(child, within_functions)


def imported_at_once(module: str) -> dict[str, str]:
    """What is imported when ``module`` is: top-level names of other projects, each with the way there."""
    found: dict[str, str] = {}
    ways = {module: module}
    todo = [module]
    for current in todo:  # grows
        parents = [name for name in MODULES if current.startswith(f"{name}.")]
        for name in (*parents, *imported(tree(current), within_functions=False)):
            way = f"{ways[current]} -> {name}"
            if name not in MODULES:
                found.setdefault(name.split(".")[0], way)
            elif name not in ways:
                ways[name] = way
                todo.append(name)
    return found


@every_module
def test_imports_follow_the_rules(module):
    package = package_of(module)
    if not package:
        return
    for name in imported(tree(module), within_functions=True):
        if name in MODULES:
            other = package_of(name)
            root = name.removeprefix("cos_ml.")
            assert (other or root) in ALLOWED[package] or name == "cos_ml" or root in HELPERS, name
        assert name.split(".")[0] not in FORBIDDEN.get(package, ()), name


def test_every_package_has_a_rule():
    assert {name.removeprefix("cos_ml.") for name in packages()} == set(ALLOWED)


@pytest.mark.parametrize("helper", sorted(HELPERS))
def test_helpers_import_no_stage(helper):
    for name in imported(tree(f"cos_ml.{helper}"), within_functions=True):
        if name in MODULES:
            allowed = ("data", "network", "sources")
            assert package_of(name) in allowed or name == "cos_ml" or name.removeprefix("cos_ml.") in HELPERS, name


@every_module
def test_what_is_imported_at_once_follows_the_rules_too(module):
    forbidden = FORBIDDEN.get(package_of(module), set()) | LIGHT.get(module, set())
    found = imported_at_once(module)
    assert not [found[name] for name in forbidden & set(found)]


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: set(imported(tree(module), within_functions=False)) & set(MODULES) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def own_names(module: str) -> set[str]:
    """The private names that ``module`` defines: functions, classes, variables, attributes, parameters."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return names


def foreign_private_names(module: str) -> Iterator[str]:
    """Uses of private names that neither ``module`` nor Spark ML's rules for subclasses define."""
    known = own_names(module) | HOOKS
    for node in ast.walk(tree(module)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            names = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
        yield from (f"line {node.lineno}: {name}" for name in names if is_private(name) and name not in known)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in INTERNALS])
def test_private_names_of_others_are_used_in_one_place_each(module):
    assert not list(foreign_private_names(module))


def test_modules_of_internals_exist():
    assert set(INTERNALS) <= set(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "cos_ml.spark_internals"])
def test_only_spark_internals_calls_the_jvm(module):
    assert not re.findall(r".*[.\"']_j[a-z].*", MODULES[module].read_text())


@pytest.mark.parametrize("module", [name for name in MODULES if name != "cos_ml.mlflow.runs"])
def test_no_clock_that_may_be_set_is_asked(module):
    """A fit whose host's clock jumps by an hour goes on: MLflow alone wants times of day."""
    assert not re.findall(
        r".*\btime\.(?:time|time_ns|localtime|gmtime)\(.*|.*\b(?:now|utcnow|today)\(\).*", MODULES[module].read_text()
    )


@every_module
def test_context_managers_are_not_written_by_hand(module):
    """A ``close()`` and contextlib.closing serve, or @contextmanager."""
    names = {node.name for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef)}
    assert not names & {"__enter__", "__exit__"}


@every_module
def test_every_module_says_on_which_side_it_runs(module):
    first = (ast.get_docstring(tree(module)) or "").split("\n\n")[0]
    assert re.search(r"\([^()]*\b(sides?|drivers?|tasks?|ranks?)\b[^()]*\)", first), first


@every_module
def test_no_module_is_too_long(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_MODULE


@every_module
def test_no_function_is_too_long(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            assert lines <= MAX_BODY or f"{module}.{node.name}" in LONG, f"{node.name}: {lines} lines"


def test_the_package_stays_small():
    counted = [path for name, path in MODULES.items() if package_of(name) not in LEAVES]
    assert sum(len(path.read_text().splitlines()) for path in counted) < MAX_PACKAGE
