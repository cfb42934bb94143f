#!/usr/bin/env python3
"""Train what is missing of the tables in a file, and print them beside the paper's figures.

    python tools/table.py configs/papers/rc2l.yaml --only table3 --seeds 0 1 2 --jobs 2 --output output/table
    python tools/table.py configs/papers/rc2l.yaml --only table3 --dry-run

    python tools/table.py configs/papers/camvid.yaml --no-training --write docs/results.md

A run has its result in <output>/runs/<recipe>_<hash>/seed<n>/result.json; runs with one are not repeated, and those
that were stopped continue (--resume). Where the table file names a folder of `results`, that of each finished run is
copied there, <recipe>_<hash>_seed<n>.json, and what lies there is done: with the folder kept in git, a table goes on
where another day or machine left it. Rows of several tables with the same recipe and overrides share their runs; the
first seed of all rows is run before the second. Each table is written to <output>/<table>.txt, .md and .json, and with
--write also into a Markdown file, between the lines `<!-- table: NAME -->` and `<!-- end of table -->`. The format of
table files stands in tools/table_file.py.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
from table_file import Table, read_table_file
from table_report import render, summarize, write_into
from table_runs import REPO, Choice, Run, runs_of, settings_digest

from rc2l.data.datasets.location import datasets_root
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.checkpoint_file import write_text
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.semi.method import method_of

#: Exit status where a run failed; the table holds the others.
EXIT_FAILED = 1


def train(run: Run, threads: int) -> str:
    """Train a run to its end and write its result; returns what went wrong, "" for nothing."""
    begin, label = time.monotonic(), f"{run.folder.parent.name}, seed {run.seed}"
    run.folder.mkdir(parents=True, exist_ok=True)
    print(f"begin: {label}", flush=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=REPO)
    with (run.folder / "console.txt").open("a") as console:
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        done = subprocess.run(run.command, stdout=console, stderr=subprocess.STDOUT, cwd=REPO, env=environment)
    if done.returncode:
        lines = (run.folder / "console.txt").read_text(errors="replace").splitlines()
        return f"{label} failed with status {done.returncode}: {lines[-1] if lines else ''} ({run.folder}/console.txt)"
    result = collect(run) | {"commit": commit.stdout.strip(), "seconds": round(time.monotonic() - begin, 1)}
    write_text(run.folder / "result.json", json.dumps(result, indent=1) + "\n")
    if run.kept is not None:
        run.kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(run.kept, _compact(result))
    print(f"done: {label}: mIoU {result['last']:.2f} in {result['seconds']:.0f} s", flush=True)
    return ""


def _compact(result: dict) -> str:
    """A result as JSON of one line an entry, so that a folder of them stays small and readable."""
    entries = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"


def collect(run: Run) -> dict:
    """Scores of a run that has come to its end, from metrics.json and inference/."""
    rows = [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]
    curves = {
        network: [[row["iteration"] + 1, row[key]] for row in rows for key in row if key.endswith(f"{network}/mIoU")]
        for network in ("teacher", "student")
    }
    dataset = load_config(str(run.recipe), list(run.overrides)).DATASETS.TEST[0]
    scores = json.loads((run.folder / "inference" / f"{dataset}_teacher.json").read_text())
    pseudo = [row for row in rows if "pseudo/mIoU" in row]
    return {
        "command": run.shown,
        "recipe": os.path.relpath(run.recipe, REPO),
        "overrides": list(run.overrides),
        "settings": settings_digest(run.recipe, run.overrides),
        "seed": run.seed,
        "dataset": dataset,
        "last": scores["mIoU"],
        "best": max([score for _, score in curves["teacher"]], default=scores["mIoU"]),
        "curve": curves["teacher"],
        "student_curve": curves["student"],
        "IoU": scores["IoU"],
        "pseudo_labels": {
            name: [[row["iteration"] + 1, row[f"pseudo/{name}"]] for row in pseudo if f"pseudo/{name}" in row]
            for name in ("mIoU", "region_precision", "region_recall", "query_IoU")
            if pseudo
        },
    }


def write_tables(tables: list[Table], choice: Choice, document: Path | None) -> None:
    """Print every table, and write it to a file of each format, and into ``document``."""
    output = choice.output
    output.mkdir(parents=True, exist_ok=True)
    summaries = [summarize(table, choice) for table in tables]
    for table, summary in zip(tables, summaries, strict=True):
        print("\n" + render(summary, "simple"))
        write_text(output / f"{table.key}.txt", render(summary, "simple"))
        write_text(output / f"{table.key}.md", render(summary, "pipe"))
        write_text(output / f"{table.key}.json", json.dumps(summary, indent=1) + "\n")
    if document is not None:
        write_into(document, summaries)


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
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], help="of labelled split, weights and training; default: the file's"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("output/table"))
    parser.add_argument("--dry-run", action="store_true", help="list the commands of what is missing, run nothing")
    parser.add_argument("--no-training", action="store_true", help="make the tables of what is done, run nothing")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="a document that has a place for each table")
    parser.add_argument("--overrides", nargs="+", default=[], help="KEY VALUE pairs for all runs, over the rows' own")
    add_import_argument(parser)
    args = parser.parse_args(words)
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds) or min(args.seeds, default=0) < 0:
        raise ValueError(f"--jobs {args.jobs} --seeds {args.seeds}: 1 job or more; seeds of 0 or more, each once")
    if len(args.overrides) % 2:
        raise ValueError(f"--overrides are KEY VALUE pairs, but there are {len(args.overrides)} words")
    file = read_table_file(args.file)
    tables = chosen(list(file.tables), args.only)
    seeds = args.seeds or list(file.seeds)
    choice = Choice(seeds, args.overrides, args.imports, args.output.resolve(), file.results)
    runs = {run.folder: run for table in tables for row in table.rows for run in runs_of(row, choice)}
    by_seed = sorted(runs.values(), key=lambda run: seeds.index(run.seed))
    missing = [run for run in by_seed if run.result is None]
    on_shapes = [run for run in missing if uses_shapes(run)]
    if args.dry_run:
        print("\n".join(run.shown for run in missing))
        return
    if args.no_training:
        missing = on_shapes = []
    if on_shapes:
        root = datasets_root().resolve()
        if not (root / "shapes").exists():  # one that was made in another size stays
            generate_shapes(root)
        os.environ["DETECTRON2_DATASETS"] = str(root)
    waiting = sum(run.result is None for run in runs.values())
    print(f"{len(runs) - waiting} runs are done, {waiting} are missing", flush=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        failures = [failure for failure in pool.map(lambda run: train(run, threads), missing) if failure]
    write_tables(tables, choice, args.write)
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
