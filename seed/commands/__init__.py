"""
The `seed` command: argument parsers, checks of what the user gives, and one module for each verb.

A verb's module has three functions: `add_parser` adds it to the command line, `check` checks what the user gave before
torch is imported, and `run` calls the library and prints the result.
"""
