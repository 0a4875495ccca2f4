"""The program that applies faults: its faults are up to date, and it tells what survives."""

from importlib import import_module

import pytest

from tests.faults import FAULTS, FIELDS, PARTS, Function, Text
from tests.golden_runs import golden
from tests.mutants import ROOT, outcome

TEXTS = {name: fault for name, fault in FAULTS.items() if isinstance(fault, Text)}
FUNCTIONS = {name: fault for name, fault in FAULTS.items() if isinstance(fault, Function)}
MATERIALS = [entry["material"] for entries in golden().values() for entry in entries.values()]
HEAD = {"schema", "stage", "algorithm"}
CASE = "tests/test_golden_keys.py::test_material_and_key_are_the_pinned_ones[wan22-i2v-a14b-{}]"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_replaced_is_there_once(name: str) -> None:
    for edit in TEXTS[name].edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.old) == 1, edit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_replaced_is_there(name: str) -> None:
    module, _, names = FUNCTIONS[name].place.partition(":")
    owner = import_module(module)
    for each in names.split("."):
        owner = getattr(owner, each)
    assert callable(owner)


@pytest.mark.parametrize("stage", FIELDS)
def test_every_field_of_every_material_has_its_faults(stage: str) -> None:
    fields = {name for each in MATERIALS if each["stage"] == stage for name in each}
    assert {*FIELDS[stage], *HEAD} == fields


@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_a_field_that_differs_has_its_fault(name: str) -> None:
    found: dict[str, set[str]] = {}
    for material in MATERIALS:
        for part, value in (material.get(name) or {}).items():
            found.setdefault(part, set()).add(str(value))
    assert {part for part, values in found.items() if len(values) > 1} <= {*PARTS[name]}


@pytest.mark.long
@pytest.mark.parametrize(("case", "expected"), [("frames", "killed"), ("unipc 0", "SURVIVES")])
def test_a_fault_survives_where_no_test_looks_for_it(case: str, expected: str) -> None:
    name = "decode: vae constant"
    what, by = outcome(name, FAULTS[name], [CASE.format(case)], known=[])
    assert what == expected
    assert (CASE.format(case) in by) == (expected == "killed")


def test_a_fault_that_is_nowhere_is_told() -> None:
    gone = Text("wanpipe/sampling/noise.py", "no such text", "")
    assert outcome("gone", gone, [], known=[])[0] == "DOES NOT APPLY"
