#!/usr/bin/env python3
"""One HTML page of one or more runs, to be opened in any browser, without network.

    rc2l report output/shapes/rc2l                         # writes output/shapes/rc2l/report.html
    rc2l report output/table/runs/* --output compare.html  # runs side by side, mean ± sd over seeds

A RUN is the OUTPUT_DIR of a training, finished or not, or a folder of such. Runs whose settings differ in the seed
alone are one row. Shown are scores, settings that differ from the defaults, curves, pseudo labels, IoU by class with
pixel counts, the confusion matrix, the best and worst images, and what the runs cost. Only files of the runs are read,
no dataset and no network, so a copied folder does.
"""

import argparse
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
from rc2l.config import get_rc2l_cfg
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.checkpoint_file import write_text
from rc2l.engine.entry_point import entry_point
from rc2l.report import find_runs, read_run, report_html
from rc2l.report.run_files import default_settings


@entry_point
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training, or a folder of such"
    )
    parser.add_argument(
        "--output", type=Path, help="file to write; default: report.html in the run, or here for several"
    )
    parser.add_argument("--title", default="", help="of the page")
    add_import_argument(parser)
    args = parser.parse_args(words)
    folders = find_runs(args.runs)
    output = args.output or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if output.is_dir():
        raise ValueError(f"--output {output}: this is a folder; name a file in it, such as {output / 'report.html'}")
    page = report_html([read_run(folder) for folder in folders], default_settings(get_rc2l_cfg()), args.title)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    runs = "1 run" if len(folders) == 1 else f"{len(folders)} runs"
    print(f"{output}: {runs}, {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
