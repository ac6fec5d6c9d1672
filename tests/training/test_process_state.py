"""Two processes on a CPU know of each other before `TrainingArguments` are made."""

import os
import subprocess
import sys

SCRIPT = """
import sys, time
from pathlib import Path
from seed.training.runs import process_state

state, done = process_state(), Path(sys.argv[1])
with state.main_process_first():
    if state.is_main_process:
        time.sleep(2)
        done.write_text(str(state.num_processes))
    else:
        done.with_name("second").write_text(str(done.exists()))
"""


def test_the_second_process_waits_for_the_main_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, str(tmp_path / "done")], check=True, capture_output=True, timeout=120, env=environment)
    assert (tmp_path / "done").read_text() == "2" and (tmp_path / "second").read_text() == "True"
