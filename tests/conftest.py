"""Which tests `make test-fast` leaves out, and what all of them keep away from the user's own files."""

import pytest

#: Files whose tests start processes or command lines, beside those that train on the miniature datasets.
_OTHER_WHOLE_RUNS = {
    "test_distributed",
    "test_doctor",
    "test_import_time",
    "test_launch",
    "test_masked_attention_training",
    "test_mixing_over_processes",
    "test_processes",
    "test_timm_training",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "datasets_folder" in item.fixturenames or item.module.__name__.rpartition(".")[2] in _OTHER_WHOLE_RUNS:
            item.add_marker(pytest.mark.whole_run)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Images that tests find whole are remembered in a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RC2L_CACHE", str(tmp_path_factory.mktemp("rc2l_cache")))
        yield
