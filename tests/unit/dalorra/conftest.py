import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny products are slower on several threads, and far slower when other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
