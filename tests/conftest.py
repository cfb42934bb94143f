"""Which tests `make test-fast` leaves out, in which order files are dealt to the processes, and what none touches."""

import pytest

from rc2l.data.datasets.shapes import generate_shapes
from tests.mini_datasets import build_mini_voc

#: Files that take longest, longest first. Begun last, one of them would be alone at the end, on one core of two.
_LONGEST = """test_processes test_resume test_train_net test_labeling_modes test_timm_training
test_masked_attention_training test_resume_changes test_examples test_launch test_killed_workers test_device
test_per_pixel test_dgcl_training test_doctor test_s4gan test_predict_and_export test_divergence""".split()


def _file(item: pytest.Item) -> str:
    return item.module.__name__.rpartition(".")[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "datasets_folder" in item.fixturenames:
            item.add_marker(pytest.mark.whole_run)
    items.sort(key=lambda item: _LONGEST.index(_file(item)) if _file(item) in _LONGEST else len(_LONGEST))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Images that tests find whole are remembered in a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RC2L_CACHE", str(tmp_path_factory.mktemp("rc2l_cache")))
        yield


@pytest.fixture(scope="session")
def miniature_datasets(tmp_path_factory):
    """A value for DETECTRON2_DATASETS with shapes and VOC, which no test changes."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=16, num_val=4, size=64)
    build_mini_voc(root, num_train=32, num_val=4)
    return root
