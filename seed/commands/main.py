"""The `seed` command: its parser, its exit codes, and what it does with errors."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..hardware import keep_freed_memory
from . import ask, caption, convert, demo, detokenize, draw, evaluate, reconstruct, tokenize
from .options import HelpFormatter
from .quiet import hide_progress_bars, hide_warnings

VERBS = (demo, tokenize, detokenize, reconstruct, caption, ask, draw, evaluate, convert)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        0 if all went well; 2 if some input cannot be used (one line on stderr says why, and `--debug` raises the error
        instead); 130 if the command was interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv  # it may also stand after the verb
    args = make_parser().parse_args([argument for argument in argv if argument != "--debug"])
    args.debug = debug
    if not debug:
        hide_warnings()
    try:
        return execute(args)
    except KeyboardInterrupt:
        print("seed: interrupted", file=sys.stderr)
        return 130
    except _user_errors() as error:
        if debug:
            raise
        print(f"seed: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line. Only Python's own library is needed for it."""
    parser = argparse.ArgumentParser(
        prog="seed",
        description="SEED turns images into 32 discrete, causally ordered codes, draws codes, and reads and writes "
        "them with a language model. `seed VERB --help` explains a verb.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seed {__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="show warnings, all progress bars, and the traceback of an error"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in VERBS:
        module.add_parser(verbs)
    return parser


def execute(args: argparse.Namespace) -> int:
    """
    Check what the user gave, then run the verb. The checks do not import torch, so that a mistake is named at once.

    Args:
        args: the arguments that the parser of [`make_parser`] read; their `check` and `run` are the verb's functions.

    Returns:
        The exit code.
    """
    args.check(args)
    if not args.debug:
        hide_progress_bars()
    keep_freed_memory()
    return args.run(args) or 0


def _user_errors() -> tuple[type[Exception], ...]:
    """Return the types of errors that say what is wrong with the user's input."""
    errors = (ValueError, OSError, ModuleNotFoundError)
    hub = sys.modules.get("huggingface_hub.errors")
    # A value of the wrong type in a config.json raises this error. It exists only once huggingface_hub is loaded.
    return (*errors, hub.StrictDataclassError) if hub else errors


if __name__ == "__main__":
    sys.exit(main())
