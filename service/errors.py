"""The exception tree.

OneSlateError
|-- BundleError            a bundle that cannot be trusted: hash, schema, golden case
|   `-- BundleUnopened     nothing is known to be wrong with it: the machine lacks a package, a provider, memory or time
|-- CatalogError           items or sids that do not make a catalog
|-- FilterError            a filter that names what does not exist or says nothing legal
|-- KeyFileError           a file of API keys that cannot be used
|-- HistoryUnavailable     the history store did not answer in time
|   `-- HistoryDamaged     it answered what is no history
|-- EventLogFull           the event log holds all that it may until it is drained
|-- EventLogOwned          the event log is drained by another collector
|-- EventLogDamaged        an entry of it, or the folder that it is drained into, cannot be used
|-- CatalogUnavailable     the catalog's log did not answer in time
|-- CatalogMoved           the catalog was changed meanwhile
|-- UnknownModel           no registered model has this version
|-- NoEarlierModel         there is no model to go back to
|-- ModelsUnavailable      the state of the models cannot be read or changed now
|   `-- ModelsMoved        it was changed meanwhile, again and again
|-- Overloaded             not admitted: the queue is full
|-- DeadlineExceeded       admitted, then out of time
|-- RunnerError            the inference runner failed or is gone

Each is the caller's or the surroundings' fault and carries one clear message; our own mistakes are assertions.
"""


class OneSlateError(Exception):
    """Base of every error that OneSlate raises on purpose."""


class BundleError(OneSlateError, ValueError):
    """A bundle is damaged, of another format, or disagrees with its golden cases."""


class BundleUnopened(BundleError):
    """It could not be opened here, for what is not its own fault."""


class CatalogError(OneSlateError, ValueError):
    """Items or semantic IDs do not make a catalog."""


class FilterError(OneSlateError, ValueError):
    """A filter names an unknown tag or name, or is empty."""


class KeyFileError(OneSlateError, ValueError):
    """The file of API keys cannot be read, or is not what it should be."""


class HistoryUnavailable(OneSlateError):
    """The history store did not answer in time."""


class HistoryDamaged(HistoryUnavailable):
    """The history store answered, but what it holds of this user is no history."""


class EventLogFull(OneSlateError):
    """The event log holds all that it may until it is drained: what was sent is not acknowledged."""


class EventLogOwned(OneSlateError):
    """The event log is drained by another collector."""


class EventLogDamaged(OneSlateError):
    """An entry of the event log, or the folder that it is drained into, cannot be used."""


class CatalogUnavailable(OneSlateError):
    """The catalog's log did not answer in time: the change is not stored."""


class CatalogMoved(OneSlateError):
    """The catalog was changed meanwhile: what should have followed its last change was not written."""


class UnknownModel(OneSlateError, ValueError):
    """No registered model has this version."""


class NoEarlierModel(OneSlateError, ValueError):
    """There is no model to go back to."""


class ModelsUnavailable(OneSlateError):
    """The state of the models cannot be read or changed now."""


class ModelsMoved(ModelsUnavailable):
    """The state of the models was changed by others, again and again."""


class Overloaded(OneSlateError):
    """The request was not admitted."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(OneSlateError):
    """The request was admitted and then ran out of time."""


class RunnerError(OneSlateError):
    """The inference runner failed or is gone."""
