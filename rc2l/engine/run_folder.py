"""OUTPUT_DIR of a run: which of its files belong to a run, and how those of an earlier one move aside."""

import json
import logging
import re
from pathlib import Path

from rc2l.engine.checkpoint import numbered_checkpoints, remove_scratch
from rc2l.engine.checkpoint_file import flush_folder, write_text

logger = logging.getLogger(__name__)

#: What a run leaves in its folder beside numbered checkpoints. Other files there are the user's own, and stay.
_OF_A_RUN = (
    "model_final.pth",
    "model_best.pth",
    "last_checkpoint",
    "metrics.json",
    "events.out.tfevents.*",
    "divergence_*.pth",
    "traceback_*.txt",
    "config.yaml",
    "log.txt",
    "log.txt.rank*",
    "inference",
    "pictures",
    "tracker.json",
    "wandb",
    "eval_only",
)
#: Says which files are on their way where, while they are.
_JOURNAL = ".moving_aside.json"


def files_of_a_run(folder: Path) -> list[Path]:
    """Files and folders that a run wrote into OUTPUT_DIR."""
    found = [path for pattern in _OF_A_RUN for path in folder.glob(pattern)]
    return sorted([*found, *numbered_checkpoints(folder).values()])


def set_aside(folder: Path) -> Path | None:
    """Move all files of an earlier run in ``folder`` into ``folder/earlier_<n>``; None if there was no run.

    A run started without --resume would else append to the earlier one's metrics, delete its checkpoints one by one,
    and be continued from them after a kill. Nothing is deleted. Each file moves by a rename, and what is to move stands
    in a journal before the first one does: :func:`complete_move` brings a killed move to its end.
    """
    earlier = complete_move(folder)
    remove_scratch(folder)
    names = [path.name for path in files_of_a_run(folder)]
    if not names:
        return earlier
    matches = [re.fullmatch(r"earlier_(\d+)", path.name) for path in folder.glob("earlier_*")]
    numbers = [int(match[1]) for match in matches if match]
    target = f"earlier_{max(numbers, default=0) + 1}"
    write_text(folder / _JOURNAL, json.dumps({"target": target, "names": names}))
    return complete_move(folder)


def _is_plain(name: str) -> bool:
    """Whether a journal may name it: an entry of the folder itself."""
    return name not in ("", ".", "..") and Path(name).name == name


def complete_move(folder: Path) -> Path | None:
    """Finish a move that was begun; returns where the files are, None if there was none.

    Raises:
        ValueError: the journal is damaged.
        OSError: a file cannot be moved; the next start tries again.
    """
    journal = folder / _JOURNAL
    if not journal.exists():
        return None
    try:
        content = json.loads(journal.read_text())
        target, names = str(content["target"]), [str(name) for name in content["names"]]
        if not re.fullmatch(r"earlier_\d+", target) or any(not _is_plain(name) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{journal} is damaged: move the files of the earlier run yourself and delete it") from error
    (folder / target).mkdir(exist_ok=True)
    for name in names:
        if (folder / name).exists() or (folder / name).is_symlink():
            (folder / name).rename(folder / target / name)
    flush_folder(folder / target)
    flush_folder(folder)
    journal.unlink()
    return folder / target
