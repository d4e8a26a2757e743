"""Tables of what a study can name: strategies, injections, tasks, sources, encoder families, answer metrics.

Each kind has one :class:`Registry`, filled by a decorator where the kind is defined, and open to other packages by
entry points: an installed package that names its class under the registry's group is known to every study.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from fusion_workbench.core.errors import WorkbenchError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class _Registered(Generic[T]):
    member: T
    origin: type[Any] | str  # the class that was registered; of members without one what tells them apart


class Registry(Mapping[str, T]):
    """The members of one kind by name: a read-only mapping, in the order of registration.

    The entry points are loaded when a name is looked up that is not registered yet, or when the members are listed. A
    plug-in that fails is left out with a warning of one line; asking for it by name raises that line.

    Args:
        kind: what a member is called in messages, such as ``task``.
        plural: of it.
        group: of entry points, such as ``fusion_workbench.tasks``.
        base: a registered class is a subclass of it.
        decorator: what to put above a class, for messages.
        requires: attributes that a registered class has.
        words: attributes of a registered class that are one of these words.
        former_group: a group of entry points that is read as well, under which an earlier version looked.
        adopt: registers an instance of ``base`` that an entry point names, under the entry point's name.
        beside: a registry with which this one shares its names: none is taken in both, and the plug-ins of the other
            are loaded first.
        elsewhere: what is said when the other one is asked for a member of this one; ``{name}`` stands for its name.
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        *,
        group: str,
        base: type[Any],
        decorator: str,
        requires: Sequence[str] = (),
        words: Mapping[str, Sequence[str]] | None = None,
        former_group: str = "",
        adopt: Callable[[str, Any], object] | None = None,
        beside: Registry[Any] | None = None,
        elsewhere: str = "",
    ) -> None:
        self.kind, self.plural, self.base, self.elsewhere = kind, plural, base, elsewhere
        self.group, self._groups = group, (group, former_group) if former_group else (group,)
        self._decorator, self._requires, self._words, self._adopt = decorator, requires, dict(words or {}), adopt
        self._members: dict[str, _Registered[T]] = {}
        self._failed: dict[str, str] = {}  # name of an entry point → why it is left out
        self._loaded = False
        self._beside = beside
        self._siblings: tuple[Registry[Any], ...] = ()
        if beside is not None:
            self._siblings, beside._siblings = (beside,), (*beside._siblings, self)

    # --- registering --------------------------------------------------------------------------------------------

    def check(self, name: str, origin: type[Any] | str, replace: bool = False) -> None:
        """Whether ``origin``, a class or what stands for one, can be registered as ``name``.

        Raises:
            WorkbenchError: the name is taken by another, in this registry or in one that shares its names; it has other
                characters than letters, digits, ``_``, ``-`` and ``.``; the class is no subclass of the base, or lacks
                a method or an attribute.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise WorkbenchError(
                f"the {self.kind} name {name!r} cannot be had; a name has letters, digits, '_', '-' and '.' alone."
            )
        for registry in (self, *self._siblings):
            registered = registry._members.get(name)
            if registered and not replace and _full_name(registered.origin) != _full_name(origin):
                raise WorkbenchError(
                    f"two {self.plural} are called '{name}': {_full_name(registered.origin)} and "
                    f"{_full_name(origin)}; rename one."
                )
        if isinstance(origin, type):
            self._check_class(name, origin)

    def _check_class(self, name: str, cls: type[Any]) -> None:
        where = f"{self.kind} '{name}': {_full_name(cls)}"
        if not issubclass(cls, self.base):
            raise WorkbenchError(f"{where} is not a subclass of {_full_name(self.base)}.")
        if inspect.isabstract(cls):
            raise WorkbenchError(f"{where} lacks {', '.join(sorted(cls.__abstractmethods__))}.")
        missing = [attribute for attribute in self._requires if not hasattr(cls, attribute)]
        if missing:
            raise WorkbenchError(f"{where} lacks {', '.join(missing)}.")
        for attribute, words in self._words.items():
            if (value := getattr(cls, attribute)) not in words:
                raise WorkbenchError(f"{where} has {attribute} = {value!r}.{nearest(value, words)}")

    def add(self, name: str, member: T, origin: type[Any] | str, replace: bool = False) -> None:
        """Make ``member`` known under ``name``. The same class again, as of a module that is run twice, replaces it.

        Raises:
            WorkbenchError: as :meth:`check`.
        """
        self.check(name, origin, replace)
        self._members[name] = _Registered(member, origin)

    # --- looking up ---------------------------------------------------------------------------------------------

    def find(self, name: str, where: str = "") -> T:
        """The member of this name.

        Args:
            name: as it was registered.
            where: what names it, for the message.

        Raises:
            WorkbenchError: there is none, or it is of a plug-in that fails; the message names the closest ones.
        """
        if name in self:
            return self[name]
        for sibling in self._siblings:
            if sibling.elsewhere and name in sibling:
                raise WorkbenchError(_prefixed(where, sibling.elsewhere.format(name=name)))
        raise self.unknown(name, self, where)

    def unknown(self, name: str, among: Iterable[str], where: str = "") -> WorkbenchError:
        """The error for a name that is not ``among`` those that would do: with the closest, or the plug-in that fails.

        Args:
            name: as :meth:`find`.
            among: of this registry or of several.
            where: as :meth:`find`.
        """
        failed = {key: line for registry in (self, *self._siblings) for key, line in registry._failed.items()}
        if name in failed:
            return WorkbenchError(_prefixed(where, f"unknown {self.kind} '{name}': the {failed[name]}"))
        without = f" Plug-ins that fail: {', '.join(sorted(failed))}." if failed else ""
        return WorkbenchError(_prefixed(where, f"unknown {self.kind} '{name}'.{nearest(name, among)}{without}"))

    def of_class(self, cls: type[Any]) -> T:
        """The member that ``cls`` was first registered as. Raises WorkbenchError where it is not registered."""
        for registered in self._members.values():
            if registered.origin is cls:
                return registered.member
        article = "an" if self.base.__name__[0] in "AEIOU" else "a"
        raise WorkbenchError(
            f"{_full_name(cls)} is {article} {self.base.__name__} and not registered; put {self._decorator} above the "
            "class."
        )

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            self.load()
        return self._members[name].member

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(self._members)

    def __len__(self) -> int:
        self.load()
        return len(self._members)

    # --- plug-ins -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Import the members of other packages, once; one that fails is left out with a warning that names it."""
        if self._loaded:
            return
        self._loaded = True  # at once: a plug-in may itself look something up while it is imported
        if self._beside is not None:
            self._beside.load()
        for group in self._groups:
            for entry in entry_points(group=group):
                try:
                    self._take(entry)
                except Exception as error:  # whatever another package raises when it is run
                    self._failed[entry.name] = self._failure(entry, error)
                    warnings.warn(self._failed[entry.name], stacklevel=2)

    def _take(self, entry: EntryPoint) -> None:
        """Load an entry point. What it names has registered itself, or is an instance that is adopted."""
        target = entry.load()
        if self._adopt is not None and isinstance(target, self.base):
            self._adopt(entry.name, target)
        elif isinstance(target, type):
            homes = [registry for registry in (self, *self._siblings) if issubclass(target, registry.base)]
            if not homes:
                raise WorkbenchError(f"{_full_name(target)} is not a subclass of {_full_name(self.base)}.")
            if not any(known.origin is target for registry in homes for known in registry._members.values()):
                homes[0].of_class(target)  # raises, and says what to put above it

    def _failure(self, entry: EntryPoint, error: Exception) -> str:
        """One line: which plug-in, of which distribution, and what it raised."""
        distribution = getattr(entry, "dist", None)
        package = f"{distribution.name} {distribution.version}" if distribution else "a package without a name"
        lines = str(error).splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return f"{self.kind} plugin {entry.name} = {entry.value} is left out: of {package}, it fails with {reason}"


def check_options(owner: str, options: Any) -> None:
    """Raises WorkbenchError unless ``options`` is a dataclass with a default for each field, as a study needs it."""
    if not isinstance(options, type) or not is_dataclass(options):
        raise WorkbenchError(f"{owner}: its options are {options!r}; they must be a dataclass.")
    bare = [f.name for f in fields(options) if f.default is MISSING and f.default_factory is MISSING]
    if bare:
        raise WorkbenchError(f"{owner}: its options {options.__qualname__} have no default for {', '.join(bare)}.")


def _prefixed(where: str, message: str) -> str:
    return f"{where}: {message}" if where else message


def _full_name(origin: type[Any] | str) -> str:
    return origin if isinstance(origin, str) else f"{origin.__module__}.{origin.__qualname__}"
