"""A Python that sees what a device installs and nothing else: the base install, linked together."""

import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import drip


def requirements(name, extras=frozenset()):
    """The distributions that a requirement needs, itself included."""
    found, waiting = {}, [(name, frozenset(extras))]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        if extras <= found.get(key, frozenset({None})) and key in found:
            continue
        found[key] = found.get(key, frozenset()) | extras
        for text in distribution(key).requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((need.name, frozenset(need.extras)))
    return sorted(found)


def install(env):
    """Make the environment with ``drip-edge[device]`` in it, out of links to the packages of this one."""
    venv.create(env, symlinks=True)
    site = next(Path(env).glob("lib/python*/site-packages"))
    for name in requirements("drip-edge", {"device"}):
        package = distribution(name)
        for top in {
            file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(package.locate_file(top))
            if source.suffix != ".pth" and not (site / top).exists():
                (site / top).symlink_to(source)
    if not (site / "drip").exists():  # an editable install has no files of its own
        (site / "drip").symlink_to(Path(drip.__file__).parent)
    program = Path(env) / "bin" / "drip"
    program.write_text(f"#!{Path(env) / 'bin' / 'python'}\nfrom drip.cli import main\nmain()\n")
    program.chmod(0o755)
