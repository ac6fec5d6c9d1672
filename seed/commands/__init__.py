"""The `seed` command: argument parsers, checks of what the user gives, and one module for each verb."""
