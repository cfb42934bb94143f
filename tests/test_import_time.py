"""What starting a program imports: the slow packages that it does not need stay out until something uses them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
sys.path.insert(0, "tools")
import predict
import train_net
slow = ("matplotlib", "torch._dynamo", "sympy", "sklearn", "scipy.optimize", "scipy.cluster", "tensorboard")
print(sorted(name for name in slow if name in sys.modules))
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
import torch._dynamo
print(torch._dynamo.utils is sys.modules["torch._dynamo.utils"], torch._dynamo.utils.__file__ is not None)
"""


@pytest.mark.whole_run
def test_train_net_and_predict_start_without_the_slow_packages_and_the_compiler_still_works():
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.splitlines()
    assert output == ["[]", "True", "True True"]
