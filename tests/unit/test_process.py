"""What a child process asks of its memory."""

import subprocess
import sys

MEASURE = """
import gc, resource
from millhand import process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        b"x" * (2 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process.expect_batches()
faults()
print(faults(), gc.get_freeze_count(), gc.get_threshold()[0])
"""


def test_memory_of_one_batch_serves_the_next() -> None:
    """Page by page from the kernel it would be some 512 faults a buffer; and what is imported is no batch's garbage."""
    told = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, timeout=30).stdout
    faults, frozen, new_objects = map(int, told.split())
    assert faults < 50 * 100
    assert frozen > 10_000
    assert new_objects == 20_000
