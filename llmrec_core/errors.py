"""The error tree: every refusal says what was wrong, where, and what to do next.

The command line turns ``exit_code`` into its own exit code; the pages print ``str(error)``.
"""

from __future__ import annotations


class LLMRecError(Exception):
    """Base of all errors that a person is meant to read.

    Args:
        what: what was wrong, in one sentence.
        where: file and line, spec field, run id ... or "" when there is only one place.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} {self.fix}".strip()


class InputError(LLMRecError):
    """What the user gave was refused; nothing was written."""

    exit_code = 2


class DataError(InputError):
    """A file, table or dataset that cannot be used."""


class SpecError(InputError):
    """A spec, preset, option or field with an unknown name or an impossible value."""


class TemplateError(InputError):
    """A prompt template that is malformed, names a missing variable, or tries to leave the sandbox."""


class ModelError(InputError):
    """A model folder or file that is missing parts, unsafe, or of an unknown kind."""


class NotFoundError(LLMRecError):
    """A run, dataset or model that is not in this workspace."""

    exit_code = 3


class RunFailedError(LLMRecError):
    """A run that ended without a manifest; ``what`` carries the worker's own reason."""

    exit_code = 1


class RunCancelledError(LLMRecError):
    """The run was cancelled by a person."""

    exit_code = 130
