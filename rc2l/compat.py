"""The one place that knows which detectron2 is installed and what today's packages took away from it.

Importing this module makes ``import detectron2`` work with

* the official packages (0.5, 0.6, main), compiled or not: nothing is changed where nothing is missing;
* the PyPI package ``detectron2-cdo`` 0.5, which has no compiled operators;
* none: the wheel of RC²L holds that package's Python files (see setup.py), which are read where nothing else is there.

RC²L uses none of the compiled operators (they serve rotated boxes, deformable convolution and COCO's fast evaluation).

It also imports torchvision, which detectron2 needs, without PyTorch's compiler: see :func:`_without_compiler`.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


class _CompilerOnDemand(types.ModuleType):
    """Stands in for a module of ``torch._dynamo``; what is asked of it comes from the real one, imported then."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "is_compile_supported":  # all that torchvision imports; called by RoI alignment only
            return lambda *args: getattr(_import_compiler(self.__name__), name)(*args)
        return getattr(_import_compiler(self.__name__), name)


def _import_compiler(module: str) -> types.ModuleType:
    _forget_stand_ins()
    return importlib.import_module(module)


def _forget_stand_ins() -> None:
    for name in ("torch._dynamo", "torch._dynamo.utils"):
        if isinstance(sys.modules.get(name), _CompilerOnDemand):
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within it ``from torch._dynamo.utils import is_compile_supported`` costs nothing.

    torchvision 0.27 imports that one name for its RoI alignment; it drags in the whole compiler and SymPy, 4 s of CPU
    that no part of RC²L needs to start. Where the compiler has been imported already, nothing is changed.
    """
    if "torch._dynamo" not in sys.modules:
        package = _CompilerOnDemand("torch._dynamo")
        package.__path__ = []
        sys.modules |= {"torch._dynamo": package, "torch._dynamo.utils": _CompilerOnDemand("torch._dynamo.utils")}
    try:
        yield
    finally:
        _forget_stand_ins()


def has_compiled_operators() -> bool:
    """Whether the installed detectron2 has its C++ extension."""
    return not isinstance(sys.modules.get("detectron2._C"), _MissingOperators)


def _find_detectron2() -> None:
    """Take the bundled files where nothing else is installed.

    Raises:
        ImportError: there are none, which is so in a clone.
    """
    if importlib.util.find_spec("detectron2") is not None:
        return
    bundled = Path(__file__).with_name("bundled")
    if not bundled.is_dir():
        raise ImportError(
            "detectron2 is not installed. 'pip install .' in a clone brings its Python files, which is enough; "
            "'make install' and an official detectron2 work too"
        )
    sys.path.append(str(bundled))
    importlib.invalidate_caches()


def _patch() -> None:
    if not hasattr(Image, "LINEAR"):  # removed in Pillow 10, read by detectron2 at import time
        Image.LINEAR = Image.BILINEAR
    _find_detectron2()
    import detectron2

    if importlib.util.find_spec("detectron2._C") is None:
        stub = _MissingOperators("detectron2._C")
        sys.modules["detectron2._C"] = stub
        detectron2._C = stub

    with _without_compiler(), suppress(ImportError):  # another torchvision may ask for more: it gets the real one
        importlib.import_module("torchvision")


if "detectron2._C" not in sys.modules:
    _patch()
