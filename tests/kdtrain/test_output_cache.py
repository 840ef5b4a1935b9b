"""Files shared by processes: what is read is what was stored, whatever happens between."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open

from kdtrain.output_cache import OutputCache

GENEROUS = 10**9


def arrays(value, n=50):
    return {
        "logits": torch.full((n, 4), value, dtype=torch.float16),
        "pooled": torch.arange(n * 3).view(n, 3).half() + value,
    }


def made(value, calls=None, n=50):
    """A `make` that notes what it was asked for."""

    def make(number, names):
        if calls is not None:
            calls.append(set(names))
        return {name: array for name, array in arrays(value, n).items() if name in names}

    return make


def refuse(number, names):
    raise AssertionError("nothing was to be computed")


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture
def cache(tmp_path):
    return OutputCache(tmp_path, "key", GENEROUS)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def size_of_a_file(tmp_path):
    probe = OutputCache(tmp_path / "probe", "key", GENEROUS)
    probe.get(1, {"logits", "pooled"}, made(0)).close()
    return (tmp_path / "probe" / "key" / "1.safetensors").stat().st_size


class TestReading:
    def test_what_one_stores_another_reads_without_computing(self, cache, tmp_path):
        assert same(cache.get(3, {"logits", "pooled"}, made(2)).arrays, arrays(2))
        found = OutputCache(tmp_path, "key", GENEROUS).get(3, {"logits", "pooled"}, refuse)
        assert same(found.arrays, arrays(2))
        assert found.file is not None
        found.close()
        assert files(tmp_path) == ["key/3.safetensors"]

    def test_epochs_and_keys_are_apart(self, cache, tmp_path):
        cache.get(1, {"logits"}, made(1))
        cache.get(2, {"logits"}, made(2))
        OutputCache(tmp_path, "other", GENEROUS).get(1, {"logits"}, made(3))
        for key, number, value in (("key", 1, 1), ("key", 2, 2), ("other", 1, 3)):
            found = OutputCache(tmp_path, key, GENEROUS).get(number, {"logits"}, refuse)
            assert found.arrays["logits"][0, 0] == value
            found.close()

    def test_a_file_is_float16_and_says_its_checksum(self, cache, tmp_path):
        cache.get(1, {"logits", "pooled"}, made(1))
        with safe_open(tmp_path / "key" / "1.safetensors", "pt") as stored:
            assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118
            assert set(stored.metadata()) == {"sha256"}

    def test_a_file_that_lacks_something_is_made_anew_with_all_that_it_had(self, cache):
        calls = []
        cache.get(1, {"logits"}, made(1, calls))
        found = cache.get(1, {"pooled"}, made(1, calls))
        assert calls == [{"logits"}, {"logits", "pooled"}]
        assert found.arrays.keys() == {"logits", "pooled"}
        cache.get(1, {"logits"}, refuse).close()

    @pytest.mark.parametrize("part", ["contents", "header", "end", "all", "nothing left"])
    def test_a_damaged_file_is_made_anew(self, cache, tmp_path, part):
        cache.get(1, {"logits", "pooled"}, made(1))
        path = tmp_path / "key" / "1.safetensors"
        whole = path.read_bytes()
        damaged = {
            "contents": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
            "header": whole[:8] + b"x" + whole[9:],
            "end": whole[:-10],
            "all": b"\xff" * len(whole),
            "nothing left": b"",
        }[part]
        path.write_bytes(damaged)
        calls = []
        assert same(cache.get(1, {"logits", "pooled"}, made(1, calls)).arrays, arrays(1))
        assert len(calls) == 1
        assert path.read_bytes() == whole
        cache.get(1, {"logits", "pooled"}, refuse).close()

    def test_arrays_of_swapped_names_are_noticed(self, cache, tmp_path):
        same_size = {name: torch.full((8, 2), value, dtype=torch.float16) for name, value in (("a", 1), ("b", 2))}
        cache.get(1, {"a", "b"}, lambda number, names: same_size)
        path = tmp_path / "key" / "1.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"c"').replace(b'"b"', b'"a"').replace(b'"c"', b'"b"'))
        calls = []
        cache.get(1, {"a", "b"}, lambda number, names: calls.append(names) or same_size)
        assert calls


class TestEviction:
    def room_for(self, tmp_path, n):
        return OutputCache(tmp_path / "cache", "key", n * size_of_a_file(tmp_path))

    def test_the_file_not_used_for_longest_goes_first(self, tmp_path):
        cache = self.room_for(tmp_path, 3)
        for number in (1, 2, 3):
            cache.get(number, {"logits", "pooled"}, made(number))
            os.utime(tmp_path / "cache" / "key" / f"{number}.safetensors", (number, number))
        cache.get(1, {"logits", "pooled"}, refuse).close()  # now it is the one used last
        cache.get(4, {"logits", "pooled"}, made(4))
        assert files(tmp_path / "cache") == [f"key/{n}.safetensors" for n in (1, 3, 4)]

    def test_files_of_all_keys_count(self, tmp_path):
        cache = self.room_for(tmp_path, 2)
        other = OutputCache(tmp_path / "cache", "other", cache.limit)
        for number in (1, 2):
            other.get(number, {"logits", "pooled"}, made(number))
            os.utime(tmp_path / "cache" / "other" / f"{number}.safetensors", (number, number))
        cache.get(1, {"logits", "pooled"}, made(1))
        assert files(tmp_path / "cache") == ["key/1.safetensors", "other/2.safetensors"]

    def test_what_is_mapped_stays_and_the_new_file_is_not_kept(self, tmp_path):
        cache = self.room_for(tmp_path, 1)
        cache.get(1, {"logits", "pooled"}, made(1))
        mapped = cache.get(1, {"logits", "pooled"}, refuse)
        found = cache.get(2, {"logits", "pooled"}, made(2))
        assert same(found.arrays, arrays(2))
        assert files(tmp_path / "cache") == ["key/1.safetensors"]
        assert same(mapped.arrays, arrays(1))
        assert cache.problem is None
        mapped.close()
        cache.get(2, {"logits", "pooled"}, made(2))
        assert files(tmp_path / "cache") == ["key/2.safetensors"]

    def test_what_is_larger_than_the_limit_drives_nothing_out(self, tmp_path):
        cache = self.room_for(tmp_path, 1)
        cache.get(1, {"logits", "pooled"}, made(1))
        assert same(cache.get(2, {"logits", "pooled"}, made(2, n=500)).arrays, arrays(2, 500))
        assert files(tmp_path / "cache") == ["key/1.safetensors"]

    def test_the_limit_holds_whatever_is_asked(self, tmp_path):
        cache = self.room_for(tmp_path, 4)
        random = torch.Generator().manual_seed(0)
        for number in torch.randint(1, 9, (100,), generator=random).tolist():
            found = cache.get(number, {"logits", "pooled"}, made(number))
            assert same(found.arrays, arrays(number))
            found.close()
            sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors")]
            assert sum(sizes) <= cache.limit
        assert len(sizes) == 4


RACE = """
import sys, time, torch
from pathlib import Path
from kdtrain.output_cache import OutputCache
folder, calls = Path(sys.argv[1]), 0
def make(number, names):
    global calls
    calls += 1
    time.sleep(0.05)
    return {"logits": torch.full((100, 4), number, dtype=torch.float16)}
print("ready", flush=True)
sys.stdin.readline()
cache = OutputCache(folder, "key", 10**9)
for number in range(20):
    found = cache.get(number, {"logits"}, make)
    assert (found.arrays["logits"] == number).all() and found.arrays["logits"].shape == (100, 4)
    found.close()
print(calls)
"""

SLOW = """
import sys, time
from pathlib import Path
from kdtrain.output_cache import OutputCache
def make(number, names):
    print("making", flush=True)
    time.sleep(600)
OutputCache(Path(sys.argv[1]), "key", 10**9).get(1, {"logits"}, make)
"""


def process(code, *args, **kwargs):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs)


class TestProcesses:
    def test_racing_processes_compute_each_file_once(self, tmp_path):
        racers = [process(RACE, tmp_path) for _ in range(3)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        outputs = [racer.communicate("go\n", timeout=120)[0] for racer in racers]
        assert all(racer.returncode == 0 for racer in racers)
        assert sum(map(int, outputs)) == 20
        assert sorted(path.name for path in (tmp_path / "key").iterdir()) == sorted(
            f"{n}.safetensors" for n in range(20)
        )

    def test_the_turn_of_a_process_that_is_killed_is_free(self, cache, tmp_path):
        with process(SLOW, tmp_path) as slow:
            assert slow.stdout.readline() == "making\n"
            slow.send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert same(cache.get(1, {"logits", "pooled"}, made(5)).arrays, arrays(5))
        assert time.monotonic() - start < 60
        cache.get(1, {"logits", "pooled"}, refuse).close()

    def test_what_dead_processes_left_half_written_is_cleared_away(self, cache, tmp_path):
        (tmp_path / "key").mkdir()
        for name in ("key/1.partial", "key/7.partial"):
            (tmp_path / name).write_bytes(b"half")
        assert same(cache.get(1, {"logits", "pooled"}, made(5)).arrays, arrays(5))
        assert [path.name for path in (tmp_path / "key").iterdir()] == ["1.safetensors"]
        cache.get(1, {"logits", "pooled"}, refuse).close()


AHEAD = """
import sys, time, torch
from pathlib import Path
from kdtrain.output_cache import OutputCache
def make(number, names):
    print(number, flush=True)
    time.sleep(0.3)
    return {"logits": torch.full((100, 4), number, dtype=torch.float16)}
print("ready", flush=True)
sys.stdin.readline()
cache = OutputCache(Path(sys.argv[1]), "key", int(sys.argv[2]))
for number in range(6):
    found = cache.get(number, {"logits"}, make, range(number + 1, 6))
    assert (found.arrays["logits"] == number).all()
    found.close()
"""


class TestAhead:
    def run(self, tmp_path, limit):
        racers = [process(AHEAD, tmp_path, limit) for _ in range(2)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        made = [list(map(int, racer.communicate(timeout=120)[0].split())) for racer in racers]
        assert all(racer.returncode == 0 for racer in racers)
        return made

    def test_who_would_wait_makes_what_is_needed_next(self, tmp_path):
        first, second = self.run(tmp_path, GENEROUS)
        assert sorted(first + second) == list(range(6))
        # 6 epochs of 0.3 s: had one waited for the other, it would have made none.
        assert min(len(first), len(second)) >= 2

    def test_nothing_is_made_ahead_that_would_not_be_kept(self, tmp_path):
        for made in self.run(tmp_path, 10):
            assert set(made) == set(range(6))
            assert len(made) <= 7  # one at most before it was known


class TestWithoutRoom:
    def test_a_full_disk_costs_the_file_only(self, cache, tmp_path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # writing beyond fails, as on a full disk
        try:
            found = cache.get(1, {"logits", "pooled"}, made(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert same(found.arrays, arrays(3))
        assert list((tmp_path / "key").iterdir()) == []
        assert cache.problem == (
            f"teacher outputs cannot be shared in {tmp_path} (File too large): each trial computes its own. "
            "Set `cache` under [run] to a folder that has room for them."
        )

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        cache = OutputCache(tmp_path / "file" / "cache", "key", GENEROUS)
        assert same(cache.get(1, {"logits", "pooled"}, made(3)).arrays, arrays(3))
        assert "(Not a directory): each trial computes its own." in cache.problem

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_may_only_be_read(self, cache, tmp_path):
        cache.get(1, {"logits", "pooled"}, made(1))
        (tmp_path / "key").chmod(0o500)
        tmp_path.chmod(0o500)
        try:
            cache.get(1, {"logits", "pooled"}, refuse).close()
            assert cache.problem is None
            assert same(cache.get(2, {"logits", "pooled"}, made(2)).arrays, arrays(2))
            assert "Permission denied" in cache.problem
        finally:
            tmp_path.chmod(0o700)
            (tmp_path / "key").chmod(0o700)

    def test_nothing_that_fits_is_no_problem(self, tmp_path):
        cache = OutputCache(tmp_path, "key", 0)
        assert same(cache.get(1, {"logits", "pooled"}, made(3)).arrays, arrays(3))
        assert files(tmp_path) == []
        assert cache.problem is None
