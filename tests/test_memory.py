"""What the system is told of memory."""

import re
from pathlib import Path

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


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no huge pages")
def test_huge_pages_are_asked_for_within_what_is_given():
    data = torch.empty(2**24, dtype=torch.uint8)
    memory.prefer_huge_pages(data.data_ptr(), data.nbytes)
    memory.prefer_huge_pages(data.data_ptr(), 4096)  # too small for one
    middle, flags = data.data_ptr() + data.nbytes // 2, ""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= middle < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    assert " hg" in flags
    assert int(data.fill_(3).sum()) == 3 * data.nbytes
