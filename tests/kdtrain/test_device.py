import ctypes

import pytest
import torch

from kdtrain import device
from kdtrain.config import Where


class Libc:
    def __init__(self):
        self.calls = []

    def mallopt(self, *args):
        self.calls.append(args)
        return 1


@pytest.fixture
def libc(monkeypatch):
    library = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    device.keep_freed_memory.cache_clear()
    yield library
    device.keep_freed_memory.cache_clear()


def test_a_process_gets_its_threads_and_keeps_its_memory(libc):
    assert device.set_up(Where(device="cpu", cpus=3)) == torch.device("cpu")
    assert torch.get_num_threads() == 3
    device.set_up(Where(device="cpu", cpus=1))
    assert torch.get_num_threads() == 1
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, once a process
    assert libc.calls == [(-3, 2**30), (-1, 2**31 - 1)]


def test_other_c_libraries_are_left_alone(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    device.keep_freed_memory.cache_clear()
    device.keep_freed_memory()
    device.keep_freed_memory.cache_clear()


@pytest.mark.parametrize(("share", "expected"), [(0.25, [(0.25, torch.device("cuda"))]), (None, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch, share, expected):
    monkeypatch.setattr(device, "device_of", lambda where: torch.device("cuda"))
    calls = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: calls.append(args))
    device.set_up(Where(gpu_share=share))
    assert calls == expected
