"""The scripts of tools/ as modules; the folder is no package, and other packages are called `tools`."""

import importlib.util
import sys
from types import ModuleType

from tests.shared_data import REPO


def load_tool(name: str) -> ModuleType:
    """tools/<name>.py, with tools/ on the path as it is when the script is run."""
    if str(REPO / "tools") not in sys.path:
        sys.path.append(str(REPO / "tools"))
    spec = importlib.util.spec_from_file_location(f"rc2l_tool_{name}", REPO / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
