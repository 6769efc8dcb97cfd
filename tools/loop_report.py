"""Figures of a drill, from its timeline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from loop_timeline import Happening, Timeline, missed

__all__ = ["reload_rows", "report_lines", "trained_until"]

_BEFORE_S, _AFTER_S = 0.5, 2.0
"""Seconds before the request of a reload and after its end in which missed frames count as the reload's."""


def reload_rows(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Yield figures of each reload: why, when, its seconds, bytes sent and that run then, frames that came, and misses.

    The frames are those from half a second before the request to two seconds after the new bundle ran; ``missed`` has
    the number of those that each query did not answer.
    """
    gaps = {query: missed(answers) for query, answers in timeline.answers.items()}
    for reload in timeline.of("reload"):
        begin, end = reload.begin - _BEFORE_S, _end(reload) + _AFTER_S
        lost = {query: sum(begin <= at <= end for at in times) for query, times in gaps.items()}
        frames = dict[str, int]()
        for query, answers in timeline.answers.items():
            frames[timeline.feeds[query]] = lost[query] + sum(begin <= each.at <= end for each in answers)
        sent = (
            [each for each in timeline.of("applied") if each.begin <= reload.begin + 1]
            if reload.text == "delta"
            else []
        )
        runs = next(each for each in timeline.of("bundle") if each.begin >= _end(reload) - 0.001)
        yield {
            "why": reload.text,
            "begin": reload.begin,
            "seconds": _end(reload) - reload.begin,
            "frames": sum(frames.values()),
            "missed": lost,
            "sent": sent[-1].more["bytes"] if sent else 0,
            "weights": runs.more["weights"],
        }


def report_lines(timeline: Timeline, query: str) -> list[str]:
    """Return the figures of a drill as lines of Markdown.

    Args:
        timeline: timeline of a whole drill.
        query: query at whose camera the scene changes.
    """
    dark, revert_at = timeline.of("scene")[0].begin, timeline.of("reverted")[0].begin
    first, again = timeline.of("merging")
    runs = next(_end(each) for each in timeline.of("reload") if each.text == "revert")
    back = "shares again" if timeline.of("back") else "private"
    states = [each for each in timeline.of("bundle") if each.begin >= runs - 0.001]
    # With its original weights, the box has more to run.
    again_at = next((each.begin for each in states if each.more["weights"] < states[0].more["weights"]), _end(again))
    parts = (
        ("merged, by day", _end(first), dark),
        ("merged, at night", dark, runs),
        ("original weights, at night", runs, again_at),
        (f"{back}, at night", again_at, float("inf")),
    )
    samples = timeline.figures["samples"]
    lines = [
        f"{query}: {revert_at - dark:.1f} s from the first dark frame to the revert, or {samples} samples;"
        f" {runs - dark:.1f} s until the box ran with the original weights.",
        "",
        "| weights of the query | answers as the original's | right answers | frames |",
        "|---|--:|--:|--:|",
    ]
    for name, begin, end in parts:
        found = [each for each in timeline.answers[query] if begin <= each.at < end]
        agrees, right = (
            sum(part) / max(len(found), 1) for part in zip(*((e.agrees, e.right) for e in found), strict=True)
        )
        lines.append(f"| {name} | {agrees:.3f} | {right:.3f} | {len(found)} |")
    lines += [
        "",
        "| reload of | sent, MB | weights that run then, MB | seconds | frames that came meanwhile | answers missed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in reload_rows(timeline):
        what = f"the step at {row['begin']:.0f} s" if row["why"] == "delta" else "the revert"
        lines.append(
            f"| {what} | {row['sent'] / 1e6:.3f} | {row['weights'] / 1e6:.2f} | {row['seconds']:.1f} |"
            f" {row['frames']} | {sum(row['missed'].values())} |"
        )
    count, lost = (sum(map(len, each)) for each in (timeline.answers.values(), map(missed, timeline.answers.values())))
    whole = timeline.of("bundle")[-1].more["files"]
    lines += [
        "",
        f"Of {count + lost:,} answers in all, {lost} were missed. The whole bundle has {whole / 1e6:.2f} MB. The first"
        f" merge trained on {first.more['images']:,} images and saved {first.more['saving']:.1%}; going on trained on"
        f" {again.more['images']:,}, and {again.more['saving']:.1%} are saved. Counted are images until"
        " all that is saved was confirmed.",
    ]
    if (scratch := timeline.figures.get("from scratch")) is not None:
        shares = "shares weights" if scratch["shares"] else "does not share"
        lines[-1] += (
            f" A merge from scratch with the same samples trained on {scratch['images']:,} images and saved"
            f" {scratch['saving']:.1%}; {query} {shares} there. Going on trained on"
            f" {again.more['images'] / max(scratch['images'], 1):.2f} of that."
        )
    return lines


def trained_until(lines: Iterable[str]) -> int:
    """Return the number of images that a merge trained on until it had confirmed all that it saves in the end.

    Args:
        lines: lines of ``gemel merge``. What merge.json counts as saved after a trial is not confirmed yet.
    """
    found = [(match[1], int(match[2])) for line in lines if (match := re.search(r"; (\S+) saved; (\d+) images", line))]
    reached = next((number for number, (saved, _) in enumerate(found) if saved == found[-1][0]), 0)
    return sum(images for _, images in found[: reached + 1])


def _end(each: Happening) -> float:
    assert each.end is not None
    return each.end
