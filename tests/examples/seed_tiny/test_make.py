"""make.sh from an empty folder to a repository that `seed demo` opens, with the smoke recipes on toy data."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_example import EXAMPLES, run_script
from toy_pictures import png

from seed.commands.main import main

MAKE = EXAMPLES / "seed_tiny" / "make.sh"
# Stands in for Python: it hands its arguments to the test, which has torch and transformers imported already. To import
# them anew for each of the fourteen scripts takes four fifths of the time.
STAND_IN = """#!{python} -SE
import json, socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect({address!r})
    test.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    sys.exit(int(test.makefile().readline() or 1))
"""


def write_toy_data(folder):
    """Pictures in the emoji set's schema, icons, and text: what make.sh would otherwise fetch."""
    rng = np.random.default_rng(0)
    names = {"train": ["red hat", "green sock", "blue shoe", "black coat"], "icons": ["red arrow", "green star"]}
    (folder / "emoji64").mkdir(parents=True)
    for split, of_split in names.items():
        rows = []
        for number, name in enumerate(of_split):
            pixels = rng.integers(0, 156, 3) + rng.integers(0, 100, (32, 32, 3))
            image = {"bytes": png(Image.fromarray(pixels.astype(np.uint8))), "path": None}
            row = {"id": f"{split}/{number}", "image": image, "captions": [name, f"a {name}"], "name": name}
            row |= {"names": [name], "category": "Objects", "subcategory": "clothing"}
            rows.append(row | {"license": "MIT", "attribution": "nobody"})
        pq.write_table(pa.Table.from_pylist(rows), folder / "emoji64" / f"{split}.parquet")
    (folder / "text").mkdir()
    texts = [{"text": f"hat {number}: a covering for the head.", "source": "wordnet"} for number in range(20)]
    pq.write_table(pa.Table.from_pylist(texts), folder / "text" / "train.parquet")


def make(tmp_path, *arguments) -> list[str]:
    """Runs make.sh; returns the names of the scripts that it started."""
    address, stand_in = tmp_path / "socket", tmp_path / "python"
    address.unlink(missing_ok=True)
    stand_in.write_text(STAND_IN.format(python=sys.executable, address=str(address)))
    stand_in.chmod(0o755)
    started = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        server.settimeout(0.1)
        command = ["bash", str(MAKE), *map(str, arguments)]
        process = subprocess.Popen(command, env=os.environ | {"PYTHON": str(stand_in)})
        while process.poll() is None:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(60)
                script, *options = json.loads(connection.makefile().readline())
                started.append(script.rsplit("/", 1)[-1])
                run_script(script, *options)
                connection.sendall(b"0\n")
    assert process.returncode == 0
    return started


def test_it_makes_a_repository_and_skips_what_is_finished(tmp_path, capfd):
    write_toy_data(tmp_path / "data")
    output = tmp_path / "made"
    scripts = make(tmp_path, output, "smoke", tmp_path / "data")
    assert len(scripts) == 14 and scripts[0] == "save_encoder.py" and scripts[-1] == "package_model.py"
    assert "finished before" not in capfd.readouterr().out
    repository = output / "seed-tiny"
    assert main(["demo", "--model", str(repository), "--output", str(tmp_path / "demo.png")]) == 0
    assert Image.open(tmp_path / "demo.png").width > 64

    (output / "done" / "seed-tiny").unlink()
    assert make(tmp_path, output, "smoke", tmp_path / "data") == ["package_model.py"]
    assert capfd.readouterr().out.count("finished before") == 13


@pytest.mark.parametrize("arguments", [[], ["OUTPUT", "large"]])
def test_wrong_arguments_are_refused(tmp_path, arguments):
    run = subprocess.run(["bash", MAKE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and ("usage: make.sh" in run.stderr or "SIZE is large" in run.stderr)
