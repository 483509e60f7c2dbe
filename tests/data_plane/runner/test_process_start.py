"""The start of a process is known to a tick, so that a start's spans add up."""

import subprocess
import sys
import time

AGE = """
import time
from data_plane.runner.status import process_started_at
print(time.time() - process_started_at())
"""


def test_the_age_of_a_new_process_is_its_age() -> None:
    before = time.time()
    age_s = float(subprocess.run([sys.executable, "-c", AGE], capture_output=True, text=True, check=True).stdout)
    assert 0 <= age_s <= time.time() - before + 0.02
