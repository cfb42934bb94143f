"""Table files: which recipes and overrides are the rows of a table, and what a paper reports for each.

    tables:
      table4:
        title: unsupervised weight, VOC Train 1/2
        recipe: ../voc/rc2l_r101_1-2.yaml       # of all rows that name none; relative to this file
        overrides: {SOLVER.IMS_PER_BATCH: 8}    # of all rows, before the row's own
        baseline: alpha 1.0                     # paired seeds are compared with this row
        rows:
          - {name: alpha 1.0, overrides: {SEMI.UNSUPERVISED_WEIGHT: 1.0}, paper: 75.65}
          - {name: another work, recipe: null, paper: 70.1, note: quoted by the paper}

Beside ``tables``, a file may have ``results``, a folder (relative to the file) of the results of finished runs, which
are kept with the code and not run again, and ``seeds``, the list that ``--seeds`` defaults to.

A row with ``recipe: null`` is not run: it only shows the paper's figure, mIoU in percent, which may be null too.
"""

from dataclasses import dataclass
from pathlib import Path

from rc2l.yaml_file import YamlError, read_yaml_mapping

_OF_A_FILE = ("title", "tables", "seeds", "results")
_OF_A_TABLE = {"title", "recipe", "overrides", "baseline", "rows", "note"}
_OF_A_ROW = {"name", "recipe", "overrides", "paper", "note"}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    #: None: nothing to run.
    recipe: Path | None
    #: KEY, VALUE, KEY, VALUE, ... as train_net.py takes them.
    overrides: tuple[str, ...]
    #: mIoU in percent; None: the paper gives no number.
    paper: float | None
    note: str


@dataclass(frozen=True)
class Table:
    """A table of a paper, or a figure of which each point is a row."""

    key: str
    title: str
    #: Name of the row that the others are compared with; "": none.
    baseline: str
    rows: tuple[Row, ...]
    note: str


@dataclass(frozen=True)
class TableFile:
    """What a table file holds."""

    tables: tuple[Table, ...]
    #: Seeds of the runs where the command line names none.
    seeds: tuple[int, ...]
    #: Where results are kept from one day to the next; None: nowhere.
    results: Path | None


def read_table_file(path: Path) -> TableFile:
    """All of a file.

    Raises:
        YamlError: one line that names the file, the table and row, and what is wrong.
    """
    content = read_yaml_mapping(path)
    tables, seeds, results = content.get("tables"), content.get("seeds", [0]), content.get("results")
    if unknown := content.keys() - _OF_A_FILE:
        raise YamlError(f"{path}: unknown: {_names(unknown)}; known: {', '.join(_OF_A_FILE)}")
    if not isinstance(tables, dict) or not tables:
        raise YamlError(f"{path}: it must hold `tables`, a mapping from a name to title and rows")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise YamlError(f"{path}: seeds is {seeds!r}; it must be a list of whole numbers of 0 or more, each once")
    if len(set(seeds)) < len(seeds):
        raise YamlError(f"{path}: seeds is {seeds!r}; it must be a list of whole numbers of 0 or more, each once")
    if results is not None and (not isinstance(results, str) or not results.strip()):
        raise YamlError(f"{path}: results is {results!r}; it must be the path of a folder")
    folder = None if results is None else (path.parent / results).resolve()
    return TableFile(tuple(_table(path, str(key), table) for key, table in tables.items()), tuple(seeds), folder)


def read_tables(path: Path) -> list[Table]:
    """:func:`read_table_file`, the tables alone."""
    return list(read_table_file(path).tables)


def _table(path: Path, key: str, table: object) -> Table:
    place = f"{path}: {key}"
    if not key.replace("-", "").replace("_", "").isalnum():
        raise YamlError(f"{place}: the name of a table must be of letters, digits, - and _")
    _check_mapping(place, table, _OF_A_TABLE)
    rows = table.get("rows")
    if not isinstance(rows, list) or not rows:
        raise YamlError(f"{place}: rows is {rows!r}; it must be a list of rows with a name each")
    common = _overrides(place, table.get("overrides"))
    read = tuple(
        _row(path, f"{place}, row {number}", row, table.get("recipe"), common) for number, row in enumerate(rows, 1)
    )
    names = [row.name for row in read]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise YamlError(f"{place}: two rows are named {twice[0]!r}; give each its own name")
    baseline = table.get("baseline", "")
    if baseline and baseline not in names:
        raise YamlError(f"{place}: baseline is {baseline!r}; it must be the name of a row: {_names(names)}")
    return Table(key, str(table.get("title", key)), str(baseline), read, str(table.get("note", "")))


def _row(path: Path, place: str, row: object, recipe: object, common: dict[str, str]) -> Row:
    _check_mapping(place, row, _OF_A_ROW)
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        raise YamlError(f"{place}: name is {name!r}; it must be text that is not empty")
    place = f"{place} ({name})"
    if "recipe" not in row and recipe is None:
        raise YamlError(f"{place}: it has no recipe; name a config file, or null for a figure that is only quoted")
    recipe = row.get("recipe", recipe)
    if recipe is not None:
        if not isinstance(recipe, str):
            raise YamlError(f"{place}: recipe is {recipe!r}; it must be the path of a config file, or null")
        recipe = (path.parent / recipe).resolve()
        if not recipe.is_file():
            raise YamlError(f"{place}: recipe: there is no file {recipe}")
    paper = row.get("paper")
    if paper is not None and (isinstance(paper, bool) or not isinstance(paper, (int, float)) or not 0 <= paper <= 100):
        raise YamlError(f"{place}: paper is {paper!r}; it must be mIoU in [0, 100] percent, or null")
    words = [word for pair in (common | _overrides(place, row.get("overrides"))).items() for word in pair]
    return Row(name, recipe, tuple(words), paper, str(row.get("note", "")))


def _overrides(place: str, given: object) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise YamlError(f"{place}: overrides is {given!r}; it must be a mapping of config keys to values")
    reserved = {"SEED", "DATASETS.SPLIT.SEED", "DATASETS.PARTIAL_LABELS.SEED", "OUTPUT_DIR"} & given.keys()
    if reserved:
        raise YamlError(f"{place}: overrides sets {_names(reserved)}, which the seed of a run sets")
    return {key: str(value) for key, value in given.items()}


def _check_mapping(place: str, content: object, known: set[str]) -> None:
    if not isinstance(content, dict):
        raise YamlError(f"{place}: it is {content!r}; it must be a mapping with {_names(known)}")
    if unknown := {str(key) for key in content} - known:
        raise YamlError(f"{place}: unknown: {_names(unknown)}; known: {_names(known)}")


def _names(names) -> str:
    return ", ".join(sorted(map(str, names)))
