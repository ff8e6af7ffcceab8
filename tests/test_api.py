"""The public API changes only together with its snapshot, so a change is seen in review."""

import difflib

import api


def test_the_public_api_equals_its_snapshot():
    found, expected = api.describe().splitlines(), api.SNAPSHOT.read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(expected, found, "tests/api.txt", "now", lineterm=""))
    assert not difference, f"{difference}\nIf the change is intended: python tests/api.py"


def test_every_public_name_has_a_docstring():
    import importlib
    import inspect

    for module_name in api.PUBLIC:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):  # not an alias such as Callable[...]
                assert value.__doc__, f"{module_name}.{name} has no docstring"
