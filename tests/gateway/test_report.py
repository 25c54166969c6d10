"""The page on recorded sessions: its numbers against a count by hand, and files that are not what they should be."""

import json
from decimal import Decimal

import pytest
from gateway_parts import ask, chat, gateway, recipe, said

from atlas_ray.cli import main
from atlas_ray.data.gateway_record import Record
from atlas_ray.gateway.report import Totals, build_report, money
from atlas_ray.report.headlines import percent

DAY = 1_790_000_000.0  # 2026-09-21


def write(folder, name, actors, success=None, score=None, usd=("0.001", "0.02"), day=DAY, unknown=()):
    """A session of steps by ``quick`` and ``deepthink``, each of 100 tokens read and 10 written."""
    steps = [{"observation": "", "action": "a", "reward": 0.0, "actor": a, "probability": 0.5} for a in actors]
    about = {"id": name, "env": "gateway", "task": "random", "seed": 0, "instruction": "", "steps": steps}
    line = {**about, "score": score, "success": success, "source": "gateway"}
    taken = []
    for n, who in enumerate(actors):
        known = n not in unknown
        taken.append(
            {
                "step": n,
                "model": "small" if who == "quick" else "large",
                "prompt_tokens": 100 if known else None,
                "completion_tokens": 10 if known else None,
                "usd": usd[who != "quick"] if known else None,
                "begun": day + n,
                "seconds": 0.5,
            }
        )
    total = sum(Decimal(s["usd"] or "0.05") for s in taken)  # where it is unknown, 0.05 were reserved
    prices = [{"model": "small", "price_prompt": 9.0, "price_completion": 10.0}]
    prices.append({"model": "large", "price_prompt": 100.0, "price_completion": 1000.0})
    spent = {"calls": actors.count("deepthink"), "tokens": 110 * len(actors), "usd": str(total)}
    usage = {"id": name, "session": None, "models": prices, "spent": spent, "steps": taken}
    for part, text in (("trajectories", json.dumps(line) + "\n"), ("usage", json.dumps(usage))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.json{'l' if part == 'trajectories' else ''}").write_text(text)


@pytest.fixture
def record(tmp_path):
    folder = tmp_path / "record"
    write(folder, "a", ["quick", "quick", "deepthink", "quick"], success=True, score=1.0)
    write(folder, "b", ["quick", "quick"], success=False, day=DAY + 86_400)
    write(folder, "c", ["deepthink"], success=None)
    write(folder, "d", ["quick", "deepthink"], success=True, unknown=[1])
    return folder


def test_the_sums_are_those_by_hand(record):
    totals = Totals.of(Record(record).sessions())
    assert totals.steps == 9 and totals.spent == Decimal("0.096"), "six small, two large, one kept reservation"
    assert totals.counted == Decimal("0.046") and totals.always == 8 * Decimal("0.02")
    small, large = totals.models["small"], totals.models["large"]
    assert (small.steps, small.usd, small.uncounted, small.prompt) == (6, Decimal("0.006"), 0, 600)
    assert (large.steps, large.usd, large.uncounted, large.completion) == (3, Decimal("0.04"), 1, 20)
    assert {day: spending.steps for (day, name), spending in totals.days.items() if name == "small"} == {
        "2026-09-21": 4,
        "2026-09-22": 2,
    }
    assert sorted(totals.calls) == [(0, 1), (1, 2), (2, 4)]
    assert totals.ended == [(0.25, True), (0.0, False), (1.0, None), (0.5, True)]


def test_what_quick_would_have_done_is_counted_apart_from_what_was_done(record):
    path = record / "usage" / "a.json"
    usage = json.loads(path.read_text())
    for n, same in ((1, None), (2, True)):
        beside = {"same": same, "action": "b", "prompt_tokens": 9, "completion_tokens": 9, "usd": "0.002"}
        usage["steps"][n]["shadow"] = beside
    usage["spent"]["usd"] = str(Decimal(usage["spent"]["usd"]) + Decimal("0.004"))
    path.write_text(json.dumps(usage))
    totals = Totals.of(Record(record).sessions())
    assert (totals.spent, totals.beside, totals.shadows) == (Decimal("0.1"), Decimal("0.004"), [True])
    assert totals.counted == Decimal("0.046") and totals.models["small"].usd == Decimal("0.006")
    page = build_report(record).read_text()
    assert "$0.00400 of it went to QUICK for what it would have done" in page
    assert f"QUICK was asked too at 1 call, and did the same at {percent(1.0)}." in page
    assert "$0.0500 of it are reservations that were kept" in page, "and no more than without"


def test_the_page_says_so_and_loads_nothing(record, capsys):
    assert main(["gateway", "--report", str(record)]) == 0
    page = (record / "report.html").read_text()
    assert page.index("What did they cost?") < page.index("Who acted?") < page.index("Spend by model")
    for told in (
        "4 sessions cost $0.0960: 54",  # 1 - 0.096 / (0.16 + 0.05)
        "than the $0.210 that DEEPTHINK alone",
        "DEEPTHINK alone $0.160.",
        "$0.0500 of it are reservations that were kept",
        "calls of a larger model: 3 of 9",
        "of the 3 sessions with a known outcome did",
        "1 session without a known outcome",
        "2026-09-22",
    ):
        assert told in page, told
    assert "src=" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_outcomes_that_nobody_knows_are_no_failures(tmp_path):
    write(tmp_path, "a", ["quick"])
    page = build_report(tmp_path).read_text()
    assert "Nobody has said so of any of the 1 session" in page and "success 0" not in page


def broken(record, part, change):
    path = next((record / part).iterdir())
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value) + "\n")
    return path


@pytest.mark.parametrize(
    ("part", "change", "field"),
    [
        ("trajectories", lambda v: v.update(success="yes"), "success"),
        ("trajectories", lambda v: v["steps"][0].update(probability=2), "steps.0.probability"),
        ("trajectories", lambda v: v.update(id="x"), "id"),
        ("usage", lambda v: v["steps"].clear(), "steps"),
        ("usage", lambda v: v["spent"].update(usd="NaN"), "spent.usd"),
        ("usage", lambda v: v["steps"][0].update(prompt_tokens=-1), "steps.0.prompt_tokens"),
        ("usage", lambda v: v["models"][0].pop("price_prompt"), "models.0.price_prompt"),
    ],
)
def test_a_bad_file_is_named_in_one_line(record, capsys, part, change, field):
    path = broken(record, part, change)
    assert main(["gateway", "--report", str(record)]) == 2
    said_of_it = capsys.readouterr().err
    assert said_of_it.count("\n") == 1 and str(path) in said_of_it and field in said_of_it
    assert part == "usage" or f"{path}:1" in said_of_it, "the line, of a file that has lines"
    assert not (record / "report.html").exists()


def test_what_cannot_be_reported_is_refused(record, tmp_path, capsys):
    for arguments in (["--report", str(tmp_path / "nothing")], ["x.toml", "--report", str(record)], []):
        assert main(["gateway", *arguments]) == 2
    (record / "usage" / "a.json").unlink()
    assert main(["gateway", "--report", str(record)]) == 2
    assert capsys.readouterr().err.count("\n") == 4


def test_money_shows_what_counts():
    assert [money(Decimal(x)) for x in ("0", "12.345", "0.5", "0.0123", "0.000004")] == [
        "$0.00",
        "$12.34",
        "$0.500",
        "$0.0123",
        "$0.00000400",
    ]


def test_what_a_gateway_records_can_be_reported(upstream, tmp_path):
    folder = tmp_path / "record"
    made = recipe(upstream.url, switch="random", share=0.5, record=str(folder))
    with gateway(made, tmp_path) as (port, _):
        for n in range(4):
            _, headers, text = ask(port, chat(f"go {n}"))
            ask(port, chat(f"go {n}", said(text), "on"))
            path = f"/v1/atlas/sessions/{headers['x-atlas-session']}/outcome"
            ask(port, {"success": n > 0}, path=path)
    totals = Totals.of(Record(folder).sessions())
    assert (totals.steps, len(totals.ended)) == (8, 4)
    assert totals.spent == Decimal(upstream.spent()[2]) / 10**12, "by the upstream's own ledger"
    assert "75" in build_report(folder).read_text()
