"""The page of a report: one file that needs no other, no script and no network."""

from collections.abc import Sequence

from jinja2 import Environment

from rc2l import __version__
from rc2l.report import contents
from rc2l.report.groups import group_runs
from rc2l.report.run_files import Run
from rc2l.report.template import TEMPLATE


def report_html(runs: Sequence[Run], defaults: dict[str, object], title: str = "") -> str:
    """The page of some runs; those that differ in their seed alone are taken together.

    Args:
        runs: one or more.
        defaults: dotted key -> value, which settings are compared with.
        title: "": made from the names of the runs.
    """
    groups = group_runs(runs, defaults)
    shown = {
        "summary": contents.summary(groups),
        "settings": contents.settings_of(groups, defaults),
        "curves": contents.curves(groups),
        "pseudo": contents.pseudo_labels(groups),
        "classes": contents.classes(groups),
        "confusions": contents.confusions(groups),
        "images": contents.images(groups),
        "cost": contents.cost(groups),
    }
    names = {"confusions": "confusion"}
    titles = {"pseudo": "Pseudo labels"}
    sections = [
        (names.get(key, key), titles.get(key, names.get(key, key).capitalize()))
        for key, value in shown.items()
        if value
    ]
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    return template.render(
        title=title or f"Report: {', '.join(group.name for group in groups[:4])}{' …' if len(groups) > 4 else ''}",
        version=__version__,
        sections=sections,
        several_seeds=any(len(group.runs) > 1 for group in groups),
        differences=contents.differences(groups, defaults),
        **shown,
    )
