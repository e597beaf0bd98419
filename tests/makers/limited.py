"""A function in a process of its own, with a bound on its memory and time: what a bomb must not exceed."""

import inspect
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
CALL = """
import json, resource, sys
from importlib import import_module
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
module, name, given = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
found = getattr(import_module(module), name)(*given)
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10]))
"""


def limited(function, *given, data=2 << 30, seconds=120):
    """What it returns, as JSON. AssertionError where it takes more than `data` bytes or `seconds`, or fails."""
    file = Path(inspect.getfile(function))
    command = [sys.executable, "-c", CALL, str(data), file.stem, function.__qualname__, json.dumps(given)]
    path = os.pathsep.join([str(file.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])[0]


def limits_hold():
    """That the limit is one: a test of these tests."""
    try:
        return len(bytearray(8 << 30))
    except MemoryError:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]
