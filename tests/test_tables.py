"""Every measured number in the READMEs is written from JSON: the tables are generated again and compared."""

import re

import pytest
from helpers import ROOT

from results import tables


@pytest.mark.parametrize("name", tables.READMES)
def test_the_tables_and_figures_of_a_readme_are_what_its_json_says(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.TABLE.search(text), "a README without a generated table"
    assert tables.differing(text, tables.rewritten(text, tables.definitions(), name)) == []


def test_a_changed_number_is_found_in_a_table_and_in_prose(tmp_path, monkeypatch):
    """An earlier test compared prose with a pool of all figures: it passed most made-up numbers."""
    (tmp_path / "a.json").write_text('{"x": 0.975, "deep.key": {"y": [0.5]}}', encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    tables.load.cache_clear()
    written = {"t": lambda: tables.table(["x"], [[tables.number(tables.get("a.json", "x"), ".1%")]])}
    text = (
        "<!-- table: t -->\n| x |\n|---|\n| 97.5% |\n<!-- end -->\n"
        "<!-- figure: a.json x .1% -->97.5%<!-- end --> and "
        "<!-- figure: a.json `deep.key`.y.0 .2f -->0.50<!-- end -->\n"
    )
    assert tables.rewritten(text, written, "R") == text
    for right, wrong in (("| 97.5% |", "| 97.6% |"), ("-->97.5%<", "-->97.4%<"), ("0.50", "0.51")):
        changed = text.replace(right, wrong)
        assert len(tables.differing(changed, tables.rewritten(changed, written, "R"))) == 1
    tables.load.cache_clear()


def test_every_declared_table_stands_in_a_readme():
    """A table that nothing shows is dead."""
    shown = {
        name
        for readme in tables.READMES
        for name in re.findall(r"<!-- table: ([\w-]+) -->", (ROOT / readme).read_text(encoding="utf-8"))
    }
    assert set(tables.definitions()) == shown


def test_intervals_and_signs_are_written_as_the_readmes_have_them():
    assert tables.interval(0.975, [0.963, 0.983], ".1%") == "97.5% (96.3 to 98.3)"
    assert tables.interval(-0.004, [-0.01, 0.002], "+.1p") == "-0.4 (-1.0 to +0.2)"
    assert tables.plus_minus({"mean": 0.953, "std": 0.032}, ".1%") == "95.3 ± 3.2%"
    assert tables.number(1423488, ",") == "1,423,488"
