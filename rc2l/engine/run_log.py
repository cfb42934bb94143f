"""What a run says: on the terminal at once, in OUTPUT_DIR/log.txt from the moment on at which the folder is its own."""

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

#: Names of the loggers that a run says something by.
LOGGERS = ("detectron2", "fvcore", "rc2l")


class _Pending(MemoryHandler):
    """Keeps what is said before there is a file."""

    def __init__(self) -> None:
        super().__init__(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)


class _LogFile(logging.FileHandler):
    """log.txt of one run."""


def start_logging() -> None:
    """Log to standard output, with colours on a terminal only; a former run of this process gets no more into its file.

    Handlers that others added stay.
    """
    for name in LOGGERS:
        log = logging.getLogger(name)
        for handler in log.handlers[:]:
            if type(handler) in (logging.StreamHandler, _Pending, _LogFile):
                log.removeHandler(handler)
                if isinstance(handler, _Pending | _LogFile):
                    handler.close()
    setup_logger.cache_clear()
    pending = _Pending()
    for name in LOGGERS:
        setup_logger(distributed_rank=comm.get_rank(), color=sys.stdout.isatty(), name=name).addHandler(pending)
    # The error itself goes to the user, in one line; detectron2 would print its traceback before.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_traceback)


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def open_log(folder: Path) -> None:
    """Append to ``folder/log.txt`` what was said since :func:`start_logging`, and all that follows.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank = comm.get_rank()
    file = _LogFile(folder / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S"))
    pending = next(handler for handler in logging.getLogger("rc2l").handlers if isinstance(handler, _Pending))
    pending.setTarget(file)
    pending.flush()
    for name in LOGGERS:
        log = logging.getLogger(name)
        log.removeHandler(pending)
        log.addHandler(file)
