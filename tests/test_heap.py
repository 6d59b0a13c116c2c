"""What many threads have used at once is given back to the system."""

import platform
import subprocess
import sys

import pytest

KEPT = """
import sys, threading
sys.path.insert(0, "app")  # alone, for the package asks for one heap when it is imported
from heap import give_back, one_heap

def memory():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024

if sys.argv[1] == "one":
    one_heap()
everyone = threading.Barrier(8)

def work():
    bytearray(30_000_000)  # freed at once: from here on glibc takes up to as much from its heaps
    everyone.wait()
    lasting, parts = bytearray(1000), [bytearray(100_000) for _ in range(400)]
    everyone.wait()
    parts.clear()
    everyone.wait()

before = memory()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_back()
print(memory() - before)
"""


def kept(heaps: str) -> int:
    """Bytes that stay of 320 MB, which eight threads had at one time."""
    return int(subprocess.run([sys.executable, "-c", KEPT, heaps], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_memory_of_all_threads_is_given_back():
    assert kept("one") < 30_000_000 < kept("many")
