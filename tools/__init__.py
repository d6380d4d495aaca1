"""Tools for working on this repository. They are not part of the wheel."""
