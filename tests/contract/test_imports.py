"""What the contracts in `pyproject.toml` do not say about the imports, type checkers' included."""

from graphlib import TopologicalSorter

import grimp
import pytest


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dalorra", "service", "training", cache_dir=None)


def test_no_import_leads_back_to_its_file(graph: grimp.ImportGraph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_nothing_inside_goes_by_the_front_door(graph: grimp.ImportGraph):
    assert graph.find_modules_that_directly_import("dalorra") == set()
