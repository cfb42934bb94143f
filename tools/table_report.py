"""Tables as they are read: means over seeds, wins against the baseline, text and Markdown."""

import os
import statistics
from pathlib import Path

from table_file import Table
from table_runs import REPO, Choice, relative, runs_of
from tabulate import tabulate

from rc2l.engine.checkpoint_file import write_text


def summarize(table: Table, choice: Choice) -> dict:
    """The table with its scores, as its JSON file has it; null where nothing was run."""
    results = {row.name: {run.seed: run.result for run in runs_of(row, choice)} for row in table.rows}
    rows = []
    for row in table.rows:
        done = {seed: result for seed, result in results[row.name].items() if result}
        last = {seed: result["last"] for seed, result in done.items()}
        best = {seed: result["best"] for seed, result in done.items()}
        base = {seed: result for seed, result in results.get(table.baseline, {}).items() if result}
        pairs = sorted(last.keys() & base.keys()) if row.name != table.baseline else []
        rows.append(
            {
                "name": row.name,
                "recipe": row.recipe and os.path.relpath(row.recipe, REPO),
                "overrides": list(row.overrides),
                "paper": row.paper,
                "note": row.note,
                "mean": statistics.mean(last.values()) if last else None,
                "sd": statistics.stdev(last.values()) if len(last) > 1 else None,
                "best_mean": statistics.mean(best.values()) if best else None,
                "best_sd": statistics.stdev(best.values()) if len(best) > 1 else None,
                "last": last,
                "best": best,
                "gain": statistics.mean(last[seed] - base[seed]["last"] for seed in pairs) if pairs else None,
                "wins": sum(last[seed] > base[seed]["last"] for seed in pairs) if pairs else None,
                "best_wins": sum(best[seed] > base[seed]["best"] for seed in pairs) if pairs else None,
                "pairs": len(pairs),
                "runs": [relative(str(run.folder)) for run in runs_of(row, choice) if run.seed in done],
            }
        )
    return {
        "table": table.key,
        "title": table.title,
        "note": table.note,
        "baseline": table.baseline,
        "seeds": choice.seeds,
        "overrides": choice.overrides,
        "rows": rows,
    }


def render(summary: dict, style: str) -> str:
    """A table as text ("simple") or Markdown ("pipe"); mIoU of the teacher in percent."""
    title = f"{summary['table']}: {summary['title']}"
    return f"{title}\n\n{_grid(summary, style)}\n"


def _grid(summary: dict, style: str) -> str:
    seeds, quoted = summary["seeds"], any(row["paper"] is not None for row in summary["rows"])
    named = f"seed {' '.join(map(str, seeds))}"
    headers = [
        "",
        "last: mean ± sd",
        *(["paper"] if quoted else []),
        f"last, {named}",
        "best: mean ± sd",
        f"best, {named}",
    ]
    headers += [f"better than {summary['baseline']}: last, best"] if summary["baseline"] else []
    lines = []
    for row in summary["rows"]:
        last, best = (
            " ".join(f"{row[kind][seed]:.2f}" if seed in row[kind] else "-" for seed in seeds) if row["last"] else ""
            for kind in ("last", "best")
        )
        line = [row["name"], _spread(row["mean"], row["sd"])]
        line += ["" if row["paper"] is None else f"{row['paper']:.2f}"] if quoted else []
        line += [last, _spread(row["best_mean"], row["best_sd"]), best]
        wins = (
            "" if row["wins"] is None else f"{row['wins']}, {row['best_wins']} of {row['pairs']} ({row['gain']:+.2f})"
        )
        lines.append(line + ([wins] if summary["baseline"] else []))
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True)


def _spread(mean: float | None, sd: float | None) -> str:
    return ("" if mean is None else f"{mean:.2f}") + ("" if sd is None else f" ± {sd:.2f}")


def write_into(path: Path, summaries: list[dict]) -> None:
    """Put tables between their markers in a Markdown file.

    Raises:
        ValueError: the file has no such markers.
    """
    content = path.read_text()
    for summary in summaries:
        begin, end = f"<!-- table: {summary['table']} -->\n", "<!-- end of table -->"
        head, found, rest = content.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"--write {path}: it has no line {begin.strip()}, or no {end} after it: add both")
        content = f"{head}{begin}\n{_grid(summary, 'pipe')}\n\n{end}{tail}"
    write_text(path, content)
