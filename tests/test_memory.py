"""What a step frees stays with the process, so that the next step does not wait for it to be cleared again."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from tether import memory
if sys.argv[1] == "kept":
    memory.keep_freed()

def step():
    pieces = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
    return sum(piece[0] for piece in pieces)

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
large = torch.ones(2**26)  # 256 MiB
del large
print(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is about the C library of Linux")
def test_freed_memory_is_kept_but_for_large_pieces():
    def faults(how):
        command = [sys.executable, "-c", STEPS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [int(number) for number in done.stdout.split()]

    (again, least), (never, kept) = faults("by default"), faults("kept")
    # By default all pieces may be cleared in every step, 1,024 pages each; kept ones, where one comes to lie elsewhere.
    assert never <= 2 * 1024
    assert never < again / 4
    assert kept - least < 100
