import pytest
from folders import save_hf


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("weights") / "dense")


@pytest.fixture(scope="session")
def moe(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("weights") / "moe", experts=2)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """Several files, three experts, bfloat16."""
    return save_hf(tmp_path_factory.mktemp("weights") / "sharded", experts=3, dtype="bfloat16", shard="5KB")
