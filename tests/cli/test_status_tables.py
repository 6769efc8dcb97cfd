"""Tables of ``gemel status``: what the plan promises a query stands beside what the query gets."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from gemel.cli.status_tables import status_tables
from gemel.cli.summary_table import summary_table
from gemel.runtime.loop.summary import FeedStats, PlanStats, QueryStats, RunStats, Summary
from gemel.runtime.planning.promises import Promise


def printed(plan: PlanStats) -> dict[str, list[str]]:
    """Return query -> words of its row, for a run of ten seconds that follows a plan."""
    queries = {"people": QueryStats("yard", 100, 71), "cars": QueryStats("yard", 100, 20)}
    status = Summary(RunStats(10.0, queries, {"yard": FeedStats(100)}, plan=plan), "ort-cpu").to_json()
    for query in status["queries"].values():
        query["age_s"] = 0.1
    status |= {"bundle": "bundle", "ready": True, "healthy": True, "uptime_s": 11.0, "segments": []}
    console = Console(file=StringIO(), width=160)
    for table in status_tables(status):
        console.print(table)
    assert isinstance(console.file, StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    return {line[0]: line for line in lines if line and line[0] in ("query", *queries)}


def test_promises() -> None:
    plan = PlanStats(("people", "cars"), {"people": 1, "cars": 1}, 0, {"people": Promise(7.25, 10.0, 5.0)})
    rows = printed(plan)
    assert rows["query"][:5] == ["query", "feed", "fps", "promised", "processed"]
    assert rows["people"][:5] == ["people", "yard", "7.1", "7.2", "71"]
    assert rows["cars"][:5] == ["cars", "yard", "2.0", "-", "20"]


def test_promised_accuracy() -> None:
    plan = PlanStats(("people",), {"people": 1}, 0, {"people": Promise(7.25, 10.0, 5.0, 0.9314)})
    assert printed(plan)["people"][:6] == ["people", "yard", "7.1", "7.2", "(93.1%)", "71"]


def test_the_table_at_the_end_of_a_run() -> None:
    queries = {"people": QueryStats("yard", 100, 71), "cars": QueryStats("yard", 100, 20)}
    promised = {"people": Promise(7.25, 10.0, 5.0, 0.9314), "cars": Promise(7.25, 10.0, 5.0)}
    run = RunStats(10.0, queries, {"yard": FeedStats(100)}, plan=PlanStats(promised=promised))
    caption = str(summary_table(Summary(run, "ort-cpu")).caption)
    assert caption.splitlines()[1:] == ["query people: an expected accuracy of 93.1% was promised"]


def test_nothing_is_promised() -> None:
    assert printed(PlanStats())["people"][:5] == ["people", "yard", "7.1", "-", "71"]
