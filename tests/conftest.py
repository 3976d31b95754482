"""Every test process: one thread, no network, no telemetry, no window; all set before anything heavy is imported."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres import Postgres, running, why_not

# A suite says the same today and tomorrow: every example comes from the test's own code, none from chance or from an
# earlier run. HYPOTHESIS_PROFILE=explore draws new ones, for whoever looks for more.
settings.register_profile("fixed", derandomize=True, print_blob=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# What collecting the tests imports lives to the end: the garbage collector need not look through it again and again.
gc.disable()

# Two OpenMP threads collapse when another process is busy, and children of a test inherit these.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# A test must not write into the store, or join the run, that a person's shell names.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "IVEDIT_RUN_FOLDER"):
    os.environ.pop(name, None)

# A shell lets what it starts in the background ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """From here on garbage is collected again, among what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_run_folder_left_behind():
    """A run names its folder in the environment, for the ranks it starts; that ends with the test."""
    yield
    os.environ.pop("IVEDIT_RUN_FOLDER", None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server; ``postgres.database()`` is the address of a new database."""
    if reason := why_not():
        pytest.skip(reason)
    with running() as server:
        yield server


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is none; torch is imported only for them."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
