#!/usr/bin/env python3
"""Train what is missing of the tables in a file, and print them beside the paper's figures.

    python tools/table.py configs/papers/rc2l.yaml --only table3 --seeds 0 1 2 --jobs 2 --output output/table
    python tools/table.py configs/papers/rc2l.yaml --only table3 --dry-run

A run has its result in <output>/runs/<recipe>_<hash>/seed<n>/result.json; runs with one are not repeated, and those
that were stopped continue (--resume). Rows of several tables with the same recipe and overrides share their runs. Each
table is written to <output>/<table>.txt, .md and .json. The format of table files stands in tools/table_file.py.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
from table_file import Row, Table, read_tables
from tabulate import tabulate

from rc2l.data.datasets.location import datasets_root
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.checkpoint_file import write_text
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.semi.method import method_of

#: Exit status where a run failed; the table holds the others.
EXIT_FAILED = 1
REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One training: a recipe, overrides, and a seed, which is also the seed of the labelled split."""

    recipe: Path
    overrides: tuple[str, ...]
    seed: int
    folder: Path
    imports: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        seed = str(self.seed)
        seeds = ["SEED", seed, "DATASETS.SPLIT.SEED", seed, "DATASETS.PARTIAL_LABELS.SEED", seed]
        words = [sys.executable, str(REPO / "train_net.py"), "--config-file", str(self.recipe), "--resume"]
        words += [word for name in self.imports for word in ("--import", name)]
        return [*words, *self.overrides, *seeds, "OUTPUT_DIR", str(self.folder)]

    @property
    def result(self) -> dict | None:
        """What the finished run scored; None where it is not finished."""
        try:
            return json.loads((self.folder / "result.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.folder}/result.json is damaged: delete it to collect it anew") from error


@dataclass(frozen=True)
class Choice:
    """What the command line asks for, of all rows."""

    seeds: list[int]
    overrides: list[str]
    imports: list[str]
    output: Path


def runs_of(row: Row, choice: Choice) -> list[Run]:
    """The runs of a row, one a seed; none for a row that is only quoted."""
    if row.recipe is None:
        return []
    merged = dict(zip(row.overrides[::2], row.overrides[1::2], strict=True))
    merged |= dict(zip(choice.overrides[::2], choice.overrides[1::2], strict=True))
    name = os.path.relpath(row.recipe, REPO)
    digest = hashlib.sha256(json.dumps([name, sorted(merged.items()), choice.imports]).encode()).hexdigest()
    words = tuple(word for pair in merged.items() for word in pair)
    folder = choice.output / "runs" / f"{row.recipe.parent.name}-{row.recipe.stem}_{digest[:8]}"
    return [Run(row.recipe, words, seed, folder / f"seed{seed}", tuple(choice.imports)) for seed in choice.seeds]


def train(run: Run, threads: int) -> str:
    """Train a run to its end and write its result; returns what went wrong, "" for nothing."""
    begin, label = time.monotonic(), f"{run.folder.parent.name}, seed {run.seed}"
    run.folder.mkdir(parents=True, exist_ok=True)
    print(f"begin: {label}", flush=True)
    with (run.folder / "console.txt").open("a") as console:
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        done = subprocess.run(run.command, stdout=console, stderr=subprocess.STDOUT, cwd=REPO, env=environment)
    if done.returncode:
        lines = (run.folder / "console.txt").read_text(errors="replace").splitlines()
        return f"{label} failed with status {done.returncode}: {lines[-1] if lines else ''} ({run.folder}/console.txt)"
    result = collect(run) | {"seconds": round(time.monotonic() - begin, 1)}
    write_text(run.folder / "result.json", json.dumps(result, indent=1) + "\n")
    print(f"done: {label}: mIoU {result['last']:.2f} in {result['seconds']:.0f} s", flush=True)
    return ""


def collect(run: Run) -> dict:
    """Scores of a run that has come to its end, from metrics.json and inference/."""
    rows = [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]
    curves = {
        network: [[row["iteration"] + 1, row[key]] for row in rows for key in row if key.endswith(f"{network}/mIoU")]
        for network in ("teacher", "student")
    }
    dataset = load_config(str(run.recipe), list(run.overrides)).DATASETS.TEST[0]
    scores = json.loads((run.folder / "inference" / f"{dataset}_teacher.json").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=REPO)
    return {
        "command": shlex.join(run.command),
        "commit": commit.stdout.strip(),
        "recipe": os.path.relpath(run.recipe, REPO),
        "overrides": list(run.overrides),
        "seed": run.seed,
        "dataset": dataset,
        "last": scores["mIoU"],
        "best": max([score for _, score in curves["teacher"]], default=scores["mIoU"]),
        "curve": curves["teacher"],
        "student_curve": curves["student"],
        "IoU": scores["IoU"],
    }


def summarize(table: Table, choice: Choice) -> dict:
    """The table with its scores, as its JSON file has it; null where nothing was run."""
    results = {row.name: {run.seed: run.result for run in runs_of(row, choice)} for row in table.rows}
    rows = []
    for row in table.rows:
        done = {seed: result for seed, result in results[row.name].items() if result}
        last = {seed: result["last"] for seed, result in done.items()}
        best = {seed: result["best"] for seed, result in done.items()}
        base = {seed: result["last"] for seed, result in results.get(table.baseline, {}).items() if result}
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
                "last": last,
                "best": best,
                "wins": sum(last[seed] > base[seed] for seed in pairs) if pairs else None,
                "pairs": len(pairs),
                "runs": [str(run.folder) for run in runs_of(row, choice) if run.seed in done],
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
    seeds = summary["seeds"]
    headers = ["", "mean ± sd", "paper", f"last, seed {' '.join(map(str, seeds))}", "best"]
    headers += [f"better than {summary['baseline']}"] if summary["baseline"] else []
    lines = []
    for row in summary["rows"]:
        mean = "" if row["mean"] is None else f"{row['mean']:.2f}"
        mean += "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        each = [" ".join(f"{row[kind][s]:.2f}" if s in row[kind] else "-" for s in seeds) for kind in ("last", "best")]
        line = [row["name"], mean, "" if row["paper"] is None else f"{row['paper']:.2f}"]
        line += each if row["last"] else ["", ""]
        wins = "" if row["wins"] is None else f"{row['wins']} of {row['pairs']} seeds"
        lines.append(line + ([wins] if summary["baseline"] else []))
    return (
        f"{summary['table']}: {summary['title']}\n\n{tabulate(lines, headers, tablefmt=style, disable_numparse=True)}\n"
    )


def write_tables(tables: list[Table], choice: Choice) -> None:
    """Print every table, and write it to a file of each format."""
    output = choice.output
    output.mkdir(parents=True, exist_ok=True)
    for table in tables:
        summary = summarize(table, choice)
        print("\n" + render(summary, "simple"))
        write_text(output / f"{table.key}.txt", render(summary, "simple"))
        write_text(output / f"{table.key}.md", render(summary, "pipe"))
        write_text(output / f"{table.key}.json", json.dumps(summary, indent=1) + "\n")


def chosen(tables: list[Table], only: list[str]) -> list[Table]:
    """The tables that ``only`` names, all for none.

    Raises:
        ValueError: there is no such table.
    """
    keys = [table.key for table in tables]
    if unknown := [name for name in only if name not in keys]:
        raise ValueError(f"--only {unknown[0]}: there is no such table; the file has {', '.join(keys)}")
    return [table for table in tables if not only or table.key in only]


@entry_point
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a table file, such as those of configs/papers/")
    parser.add_argument("--only", nargs="+", default=[], metavar="TABLE", help="tables of the file; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of labelled split, weights and training")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("output/table"))
    parser.add_argument("--dry-run", action="store_true", help="list the commands of what is missing, run nothing")
    parser.add_argument("--overrides", nargs="+", default=[], help="KEY VALUE pairs for all runs, over the rows' own")
    add_import_argument(parser)
    args = parser.parse_args(words)
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError(f"--jobs {args.jobs} --seeds {args.seeds}: 1 job or more; seeds of 0 or more, each once")
    if len(args.overrides) % 2:
        raise ValueError(f"--overrides are KEY VALUE pairs, but there are {len(args.overrides)} words")
    tables = chosen(read_tables(args.file), args.only)
    choice = Choice(args.seeds, args.overrides, args.imports, args.output.resolve())
    runs = {run.folder: run for table in tables for row in table.rows for run in runs_of(row, choice)}
    missing = [run for run in runs.values() if run.result is None]
    on_shapes = [run for run in missing if uses_shapes(run)]
    if args.dry_run:
        print("\n".join(shlex.join(run.command) for run in missing))
        return
    if on_shapes:
        root = datasets_root().resolve()
        if not (root / "shapes").exists():  # one that was made in another size stays
            generate_shapes(root)
        os.environ["DETECTRON2_DATASETS"] = str(root)
    print(f"{len(runs) - len(missing)} runs are done, {len(missing)} are missing", flush=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        failures = [failure for failure in pool.map(lambda run: train(run, threads), missing) if failure]
    write_tables(tables, choice)
    if failures:
        print("\n".join(f"error: {failure}" for failure in failures), file=sys.stderr)
        sys.exit(EXIT_FAILED)


def uses_shapes(run: Run) -> bool:
    """Whether it trains on the dataset that is generated; checks the config of the run on the way."""
    try:
        cfg = load_config(str(run.recipe), list(run.overrides))
        method_of(cfg)
        names = cfg.DATASETS.TRAIN
    except ValueError as error:
        raise ValueError(f"{run.recipe} with {shlex.join(run.overrides)}: {error}") from error
    return any(name.startswith("shapes_") for name in names)


if __name__ == "__main__":
    main()
