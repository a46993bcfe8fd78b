"""The house keeps its order: imports point downwards, names mean one thing, and what
the book says of the package is what the package has.
"""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import house
import pytest

import survey_code
from survey_code.catalog import CATALOG

ROOT = Path(__file__).parents[1]
MODULES = house.list_modules()
METHODS = ("low_precision", "mixed_dimension", "weight_sharing")
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def resolve(target):
    """The module that an import names: itself, or where the name stands."""
    return target if target in MODULES else target.rpartition(".")[0]


EDGES = {
    name: {resolve(target) for target in house.read_imports(path)}
    for name, path in MODULES.items()
}


# -- imports ----------------------------------------------------------------------


def test_every_room_has_its_place():
    rooms = {name.split(".")[0] for name in MODULES} - {""}
    assert rooms == set(house.ROOMS)


def test_imports_point_downwards():
    places = {room: place for place, room in enumerate(house.ROOMS)}
    upwards = {
        (room, other)
        for room, other in house.count_imports()
        if other in places and places[other] > places[room]
    }
    # Layouts pick their kernels, and kernels know how layouts pack.
    assert upwards == set()


def test_modules_import_in_no_circle():
    list(TopologicalSorter(EDGES).static_order())  # raises CycleError


@pytest.mark.parametrize("room", ["data", "models", "training", "metrics", "layouts"])
def test_what_methods_stand_on_knows_no_method(room):
    seen, open_ = set(), [name for name in MODULES if name.split(".")[0] == room]
    while open_:
        name = open_.pop()
        seen.add(name)
        open_ += EDGES.get(name, set()) - seen
    assert not {name for name in seen if name.split(".")[0] in (*METHODS, "catalog")}


def test_methods_know_the_world_through_their_task_only():
    family = {
        name: ".".join(name.split(".")[:2])
        for name in MODULES
        if name.split(".")[0] in METHODS and name.count(".") >= 2
    }
    for name, own in family.items():
        for target in EDGES[name]:
            assert target.split(".")[0] not in ("training", "models", "lab", "data")
            # What two families share lies in a file of its own, not in a sibling.
            assert family.get(target, own) == own, f"{name} imports {target}"


def test_the_package_itself_imports_nothing():
    assert EDGES[""] == set()


def test_the_drawing_is_of_these_imports():
    """Drawn anew by ``python book/_tools/house.py``."""
    assert house.PICTURE.read_text() == house.draw()
    assert "house.svg" in (ROOT / "book" / "architecture.md").read_text()


# -- sizes and names ----------------------------------------------------------------


def walk(kind):
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield name, node


def test_functions_are_small():
    long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, node in walk(ast.FunctionDef)
        if node.end_lineno - node.lineno >= 50
    }
    assert long == {}


def test_classes_have_few_public_methods():
    for name, node in walk(ast.ClassDef):
        public = {  # a method that is overloaded is one
            part.name
            for part in node.body
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
        }
        assert len(public) <= 12, f"{name}.{node.name}: {public}"


def top_names(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name))


# One letter for a type, and what Python itself asks a module for.
SHARED = re.compile(r"[A-Z]|__\w+__|_\w+")


def test_no_name_means_two_things():
    owners = {}
    for name, tree in TREES.items():
        for defined in set(top_names(tree)):
            if not SHARED.fullmatch(defined):
                owners.setdefault(defined, set()).add(name)
    assert {name: own for name, own in owners.items() if len(own) > 1} == {}


def parameters(node):
    given = node.args
    yield from (*given.posonlyargs, *given.args, *given.kwonlyargs)
    yield from (part for part in (given.vararg, given.kwarg) if part)


def test_parameters_have_real_types():
    counts = Counter()
    for _, node in walk(ast.FunctionDef):
        for parameter in parameters(node):
            words = ast.unparse(parameter.annotation) if parameter.annotation else ""
            counts[words] += 1
    assert counts["Any"] <= 40
    text = "\n".join(path.read_text() for path in MODULES.values())
    assert len(re.findall(r"\bcast\(", text)) == 0
    assert len(re.findall("# type: ignore", text)) <= 4


# -- the book -------------------------------------------------------------------------


def test_every_method_is_in_the_bibliography():
    text = (ROOT / "book" / "references.bib").read_text()
    known = set(re.findall(r"^@\w+\{([^,]+),", text, re.M))
    assert {method.citation for method in CATALOG} <= known


def test_the_api_page_has_every_public_name_and_module():
    page = (ROOT / "book" / "api.md").read_text()
    listed = set(re.findall(r"^   ~survey_code\.(?:[\w.]+\.)?(\w+)$", page, re.M))
    assert listed == set(survey_code.__all__)
    shown = re.findall(r"^\.\. automodule:: survey_code\.([\w.]+)$", page, re.M)
    packages = {name.rpartition(".")[0] for name in MODULES}
    wanted = set(MODULES) - packages - {"", "__main__"}
    assert len(shown) == len(set(shown))
    assert wanted <= set(shown) <= set(MODULES)
    headings = re.findall(r"^### `survey_code\.([\w.]+)`$", page, re.M)
    assert headings == shown


def test_no_paper_stands_twice_in_the_bibliography():
    """The page's builder would stop reading there, and miss all that follow."""
    keys = re.findall(
        r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(), re.M
    )
    assert len(keys) > 100
    assert [key for key, times in Counter(keys).items() if times > 1] == []
