"""The errors a user can cause or meet, each with the exit code that a calling program may rely on.

    GritLiteError
    ├── UsageError      2    the command line asks for something that cannot be
    ├── RecipeError     2    a recipe key or value
    ├── DataError       3    triplets or images
    ├── ModelError      4    a model, a machine or a package that is missing
    ├── NotFetched      4    data that is not on this machine and cannot be had now
    ├── OutOfMemory     5    it does not fit, after every retry
    ├── Diverged        6    a reward, loss or gradient that is not a finite number
    ├── JudgeError      7    the judge gives too few verdicts, or wrong ones, to be believed
    ├── Stopped       130    a signal; 143 for SIGTERM
    └── Elsewhere            of several processes another one failed; its exit code

A message says what you did, what is wrong with it, and what to do. Exit code 1 is left for bugs of ours, which are not
in this family and keep their traceback under `--debug`.
"""


class GritLiteError(Exception):
    """Base of the family; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(GritLiteError):
    exit_code = 2


class RecipeError(GritLiteError):
    exit_code = 2


class DataError(GritLiteError):
    exit_code = 3


class ModelError(GritLiteError):
    exit_code = 4


class NotFetched(GritLiteError):
    exit_code = 4


class OutOfMemory(GritLiteError):
    exit_code = 5


class Diverged(GritLiteError):
    exit_code = 6


class JudgeError(GritLiteError):
    exit_code = 7


class Stopped(GritLiteError):
    """A signal ended the run after a checkpoint was kept.

    Args:
        signal_number: 2 for Ctrl-C, 15 for SIGTERM; the exit code is 128 + this, as shells have it.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Elsewhere(GritLiteError):
    """Another process of the same run says what is wrong; this one ends with it, in silence."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Another process of the run has failed.")
        self.exit_code = exit_code
