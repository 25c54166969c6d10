"""The chain of ``benchmarks/switching_optimum.py``: both learners at all costs and budgets, against the optimum."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import switch_mdps

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "switching_optimum.py"


@pytest.fixture
def table(monkeypatch):
    spec = importlib.util.spec_from_file_location("switching_optimum", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "switching_optimum", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_chain_is_learnt_at_every_cost_and_budget(ray_session, table, tmp_path, capsys):
    chosen = {"mdps": ["chain-12"], "costs": table.COSTS, "budgets": table.BUDGETS, "algorithms": table.ALGORITHMS}
    tasks = table.tasks_of(argparse.Namespace(**chosen, seeds=2, steps=12_000, full=False))
    rows = table.train_all(tasks, tmp_path / "rows.jsonl", 1)
    table.show(rows)
    said = capsys.readouterr().out
    assert len(rows) == 2 * 2 * 8
    assert all(row["share"] <= 1 + 1e-9 for row in rows)
    assert sum(row["share"] >= table.GOOD for row in rows) >= 0.9 * len(rows), said


@pytest.mark.slow
def test_a_table_that_was_broken_off_goes_on(ray_session, table, tmp_path, capsys):
    chosen = {"mdps": ["chain-6"], "costs": [], "budgets": [0, 1], "algorithms": ["dqn"]}
    tasks = table.tasks_of(argparse.Namespace(**chosen, seeds=1, steps=700, full=True))
    out = tmp_path / "rows.jsonl"
    first = table.train_all(tasks[:1], out, 1)
    with out.open("a") as file:
        file.write('{"mdp": "chain-6", "cost"')  # a kill in the middle of a line
    rows = table.train_all(tasks, out, 1)
    assert rows[0] == first[0]
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    assert (rows[0]["share"], rows[0]["calls"], rows[0]["mistakes"]) == (1.0, [], []), "nothing can be asked for"
    best = switch_mdps.optimum(switch_mdps.MDPS["chain-6"], table.GAMMA, budget=1)[0, -1]
    assert rows[1]["optimum"] == best
    assert bool(rows[1]["mistakes"]) == (rows[1]["share"] < 1 - 1e-9)
    table.show(rows)
    said = capsys.readouterr().out
    assert said.count("| chain-6 | budget") == 2
    assert said.count("- chain-6, budget 1, dqn, seed 0: model in state") == bool(rows[1]["mistakes"])
