"""The one place that knows which detectron2 is installed and what today's packages took away from it.

Importing this module makes ``import detectron2`` work with

* the official packages (0.5, 0.6, main), compiled or not: nothing is changed where nothing is missing;
* the PyPI package ``detectron2-cdo`` 0.5, which has no compiled operators.

RC²L uses none of the compiled operators (they serve rotated boxes, deformable convolution and COCO's fast evaluation).
"""

import importlib.util
import sys
import types

from PIL import Image


class _MissingOperators(types.ModuleType):
    """Stands in for ``detectron2._C``; importing it works, using an operator raises :class:`ImportError`."""

    @staticmethod
    def get_compiler_version() -> str:
        """Read by detectron2's environment report."""
        return "none: detectron2 without C++ extension"

    get_cuda_version = get_compiler_version

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"detectron2's compiled operator '{name}' is not available: the installed detectron2 has no C++ extension. "
            "RC²L does not need it; for your own code that does, install an official detectron2 build."
        )


def has_compiled_operators() -> bool:
    """Whether the installed detectron2 has its C++ extension."""
    return not isinstance(sys.modules.get("detectron2._C"), _MissingOperators)


def _patch() -> None:
    if not hasattr(Image, "LINEAR"):  # removed in Pillow 10, read by detectron2 at import time
        Image.LINEAR = Image.BILINEAR
    import detectron2

    if importlib.util.find_spec("detectron2._C") is None:
        stub = _MissingOperators("detectron2._C")
        sys.modules["detectron2._C"] = stub
        detectron2._C = stub


if "detectron2._C" not in sys.modules:
    _patch()
