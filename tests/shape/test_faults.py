"""tests/FAULTS.md: for each fault that the fleet must survive, the tests that inject it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS / "FAULTS.md"
ROW = re.compile(r"^\| F(\d+) \| [^|]+ \| ([^|]*) \|", re.MULTILINE)
DELIVERY = {*range(1, 13), *range(20, 42), 47, 48, 49, 52}  # the numbers of the faults that touch delivery
NOT_INJECTED = re.compile(r"^not injected: \S")


def named_in_docstrings() -> dict[str, set[int]]:
    """Return the faults that each test's docstring names."""
    found: dict[str, set[int]] = defaultdict(set)
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name] |= {int(number) for number in re.findall(r"\bF(\d+)\b", ast.get_docstring(node) or "")}
    return found


def test_each_fault_of_delivery_has_a_row_with_its_tests() -> None:
    """A fault that cannot be injected says why instead."""
    rows = {int(number): cell for number, cell in ROW.findall(TABLE.read_text(encoding="utf-8"))}
    assert sorted(DELIVERY - set(rows)) == []
    assert not [number for number, cell in rows.items() if "`test_" not in cell and not NOT_INJECTED.match(cell)]


def test_each_test_in_the_table_is_there_and_names_its_fault() -> None:
    """A row that is wrong is worse than none."""
    named = named_in_docstrings()
    wrong = [
        (number, test)
        for number, cell in ROW.findall(TABLE.read_text(encoding="utf-8"))
        for test in re.findall(r"`(test_\w+)`", cell)
        if int(number) not in named.get(test, set())
    ]
    assert wrong == []
