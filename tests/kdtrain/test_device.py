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


@pytest.mark.parametrize("error", [OSError("libc.so.6: cannot open shared object file"), None])
def test_other_c_libraries_are_left_alone(libc, monkeypatch, error):
    asked = []

    def load(name):
        asked.append(name)
        if error is not None:
            raise error
        return object()  # without mallopt

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert device.set_up(Where(device="cpu")) == torch.device("cpu")
    assert asked == ["libc.so.6"]
    assert libc.calls == []


@pytest.mark.parametrize(("share", "expected"), [(0.25, [(0.25, torch.device("cuda"))]), (None, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch, share, expected):
    monkeypatch.setattr(device, "device_of", lambda where: torch.device("cuda"))
    calls = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: calls.append(args))
    device.set_up(Where(gpu_share=share))
    assert calls == expected
