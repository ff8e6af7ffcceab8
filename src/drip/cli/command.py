"""The class of all commands; it checks the parsed options in the same way for every command."""

from __future__ import annotations

from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

_EXCLUSIVE = (("keep", "dpw"), ("keep", "n_samples", "epsilon"))
"""Parameters that set the same number, so only one of them may be given."""

_IN_MODEL_FILE = ("weights", "input_spec", "score", "class_names")
"""What a model file contains; options for a PyTorch model."""

_PER_TIME = ("samples_per_hour=", "bytes_per_day=")
"""Rule options that set a target per time, which replaces the keep rate."""


class Command(TyperCommand):
    """A command in which typed options win over the configuration file, and no path is empty.

    An option of the configuration file that contradicts the command line is ignored as if it were not there:
    a user cannot leave out an option that they did not type.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, then check.

        Raises:
            BadParameter: a path is empty, or two options set the same number.
        """
        rest = super().parse_args(ctx, args)
        # An empty path, as from an unset variable in a script, would silently mean the current folder.
        for parameter in self.params:
            if parameter.type.name == "path" and ctx.params.get(parameter.name) == "":
                raise BadParameter("the path is empty; write . for the current folder", ctx, parameter)
        for names in _EXCLUSIVE:
            self._choose_one(ctx, names)
        self._choose_target(ctx)
        self._fit_model(ctx)
        if self.name == "populations" and ctx.params.get("answer") is None:
            self._ignore_configured(ctx, "policy", "out")  # a list needs neither
        return rest

    def _choose_one(self, ctx: Any, names: tuple[str, ...]) -> None:
        given = [name for name in names if ctx.params.get(name) is not None]
        if any(_source(ctx, name) == "COMMANDLINE" for name in given):
            self._ignore_configured(ctx, *given)
            given = [name for name in given if _source(ctx, name) == "COMMANDLINE"]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise BadParameter(f"{options} set the same number; give only one of them", ctx)

    def _choose_target(self, ctx: Any) -> None:
        options = ctx.params.get("rule_option") or ()
        others = [option for option in options if not option.startswith(_PER_TIME)]
        if len(others) == len(options):
            return
        if _source(ctx, "rule_option") == "COMMANDLINE":
            self._ignore_configured(ctx, "keep", "dpw")
        elif "COMMANDLINE" in (_source(ctx, "keep"), _source(ctx, "dpw")):
            ctx.params["rule_option"] = others

    def _fit_model(self, ctx: Any) -> None:
        """Ignore configured options that do not apply to the kind of model on the command line."""
        if _source(ctx, "model") != "COMMANDLINE" or ctx.params["model"] is None:
            return
        if not ctx.params["model"].lower().endswith(".onnx"):
            self._ignore_configured(ctx, "threads")
        elif self.name != "export":
            self._ignore_configured(ctx, *_IN_MODEL_FILE)
        else:  # from an ONNX file of another program, which contains only weights
            self._ignore_configured(ctx, "weights")

    def _ignore_configured(self, ctx: Any, *names: str) -> None:
        for parameter in self.params:
            if parameter.name in names and _source(ctx, parameter.name) == "DEFAULT_MAP":
                ctx.params[parameter.name] = parameter.default


def _source(ctx: Any, name: str) -> str:
    """Where a value was given: ``COMMANDLINE``, ``DEFAULT_MAP`` (the configuration file), or another."""
    found = ctx.get_parameter_source(name)
    return "" if found is None else str(found.name)
