"""Runs a script of examples/ in this process, as its command line would."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_script(name: str, *arguments: object) -> None:
    """
    Args:
        name: of the script below examples/.
        arguments: of its command line.
    """
    script = EXAMPLES / name
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    sys.path.insert(0, str(script.parent))  # as Python does for a script
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
        sys.path.remove(str(script.parent))
