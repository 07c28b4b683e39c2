"""The errors users meet: each says what was found, what was expected and what to do next."""


class MorphorayError(Exception):
    """Base of every error that the command line prints without a traceback.

    passing: whether the same work may go well a little later, so that starting it again makes sense.
    """

    passing = False


class ConfigError(MorphorayError):
    """A run's configuration is wrong; the message names the key."""


class DataError(MorphorayError):
    """Input data break their contract; the message names the file, column or row."""


class BadFractionError(DataError):
    """More rows were quarantined than `max_bad_fraction` allows."""


class StorageError(MorphorayError):
    """A URI can't be read or written; the message names the URI and the likely cause."""


class PassingStorageError(StorageError):
    """Object storage gave no good answer now: it is down, overloaded, or the object was just replaced."""

    passing = True


class MissingObjectError(StorageError):
    """The object behind a URI does not exist."""


class FingerprintError(MorphorayError):
    """Stored work was made by other settings than the ones it is now asked to continue with."""


class ResourceError(MorphorayError):
    """The cluster has fewer CPUs or GPUs than the run needs."""


class MissingExtraError(MorphorayError):
    """An optional library is absent; the message names the extra that installs it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed: found no module of that name. "
            f"Install it with: pip install 'morphoray[{extra}]'"
        )
        self._given = (library, extra)

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return type(self), self._given
