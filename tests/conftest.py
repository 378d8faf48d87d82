"""What every test shares: one thread, no network, the same hypothesis examples everywhere, processes ended at the end."""

import os

# Before torch and transformers are imported. On few cores, threads of several processes only take turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
from distributed import close_pool

# A deadline would fail on a busy machine, not on a defect.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def _test_processes():
    yield
    close_pool()
