"""The examples in the docstrings of the main classes run, offline and as they stand."""

import inspect
import re
import textwrap

import pytest

import seed

DOCUMENTED = ("SeedModel", "SeedPipeline", "SeedProcessor", "SeedVectorQuantizer", "SeedOPTForCausalLM.from_text_model")
# What follows the line "Example:", as far as the docstring goes.
EXAMPLE = re.compile(r"^Examples?:$(.*)", flags=re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"```python\n(.*?)^\s*```", flags=re.MULTILINE | re.DOTALL)


def example_blocks(docstring: str | None) -> list[str]:
    """The Python blocks below the line "Example:" of a docstring."""
    below = EXAMPLE.search(inspect.cleandoc(docstring or ""))
    return [textwrap.dedent(block) for block in BLOCK.findall(below.group(1))] if below else []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_docstring_runs(name, monkeypatch, tmp_path):
    documented = seed
    for part in name.split("."):
        documented = getattr(documented, part)
    blocks = example_blocks(documented.__doc__)
    assert blocks, f"{name} has no Example: with a ```python block in its docstring."
    monkeypatch.chdir(tmp_path)  # an example names no file of the checkout
    scope = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)


def test_examples_are_found_where_they_stand():
    text = """
    Return it.

    Example:

        ```python
        if True:
            value = 1
        ```
    """
    assert example_blocks(text) == ["if True:\n    value = 1\n"]
    assert example_blocks("Return it.\n\n```python\nvalue = 1\n```") == [] == example_blocks(None)
