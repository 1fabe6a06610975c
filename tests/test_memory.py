"""What was freed goes back to the system."""

import psutil
import pytest
import torch

from quant_engine import memory


@pytest.mark.skipif(memory._library("malloc_trim") is None, reason="another C library than glibc")
def test_holes_between_tensors_in_use_are_given_back():
    tensors = [torch.ones(2**14) for _ in range(2000)]  # 128 MB in pieces that come from the heap
    in_use = tensors[::100]
    del tensors
    before = psutil.Process().memory_info().rss
    memory.give_back()
    assert before - psutil.Process().memory_info().rss > 64e6
    assert len(in_use) == 20
