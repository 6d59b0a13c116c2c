"""Every test runs offline and on one thread: tiny models lose most of their time to thread hand-over."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever a test before has set: with another number of threads sums differ in their last bits."""
    torch.set_num_threads(1)
