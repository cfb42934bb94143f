"""One HTML page of runs: what their folders hold, as numbers, figures and a page that needs nothing else."""

from rc2l.report.page import report_html
from rc2l.report.run_files import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "read_run", "report_html"]
