"""Cases and their hardware configs, found by entry point or by folder."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import ValidationError

from core.entry_points import distribution_of, entry_points
from core.errors import UsageError
from core.plugins import discover, one_line
from schemas.base import explain
from schemas.case import Case, HardwareConfig, Run

GROUP = "accelmark.cases"
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """A hardware config and where it was read."""

    value: HardwareConfig
    source: str
    """File name, or the vendor that contributes it."""

    def run(self, run_id: str) -> Run:
        """The run called ``run_id``; UsageError lists the known ones."""
        for run in self.value.runs:
            if run.id == run_id:
                return run
        known = ", ".join(run.id for run in self.value.runs)
        raise UsageError(f"config {self.value.name} has no run {run_id!r}", f"use one of: {known}")


@dataclass(frozen=True)
class LoadedCase:
    """A case with its configs, sorted by name."""

    case: Case
    location: str
    """What ``resolve`` takes to find it again in another process."""
    folder: Path
    configs: tuple[Config, ...]
    unasked: Mapping[str, str]
    """Vendors whose hook ``hardware_configs`` failed, and why; their configs are missing above."""

    def config(self, name: str) -> Config:
        """The config called ``name``, e.g. ``H800x2x8``; UsageError lists the known ones."""
        for config in self.configs:
            if config.value.name == name:
                return config
        known = ", ".join(config.value.name for config in self.configs)
        silent = "".join(f"; vendor {vendor} gave none: {why}" for vendor, why in self.unasked.items())
        raise UsageError(f"case {self.case.name!r} has no config {name!r}", f"use one of: {known}{silent}")


def resolve(argument: str, alternative: str | None = None) -> LoadedCase:
    """The case that ``argument`` means: a case folder, or the name (last path component) of an installed case.

    UsageError where it means none; it names the ``alternative`` that the argument could have been, too.
    """
    folder = Path(argument)
    if (folder / "__init__.py").is_file():
        return _from_folder(folder.resolve())
    name = folder.name
    # A module cannot be called as a case may be: llava1.5_13b lies in llava1_5_13b.
    entries = [entry for entry in entry_points(GROUP) if entry.name in (name, name.replace(".", "_"))]
    if not entries:
        known = ", ".join(sorted({entry.name for entry in entry_points(GROUP)}))
        kinds = "case" if alternative is None else f"case and no {alternative}"
        give = "a case folder" if alternative is None else f"a case folder, a {alternative}"
        raise UsageError(f"no {kinds} {argument!r}", f"give {give}, or one of: {known}")
    if len(entries) > 1:
        owners = " and ".join(distribution_of(entry) for entry in entries)
        raise UsageError(
            f"case {name!r} is provided by more than one distribution: {owners}",
            "give the folder of the one you mean, or uninstall the other",
        )
    return _from_entry(entries[0])


def installed() -> tuple[tuple[str, str, LoadedCase | None, str | None], ...]:
    """Every installed case as (name, distribution, case or None, why it does not load)."""
    found: list[tuple[str, str, LoadedCase | None, str | None]] = []
    for entry in sorted(entry_points(GROUP), key=lambda e: e.name):
        try:
            found.append((entry.name, distribution_of(entry), _from_entry(entry), None))
        except UsageError as error:
            found.append((entry.name, distribution_of(entry), None, error.what))
    return tuple(found)


def _from_folder(folder: Path) -> LoadedCase:
    entries = entry_points(GROUP)
    for entry in entries:
        origin = _origin(entry.module)
        if origin and Path(origin).resolve().parent == folder:
            unique = sum(other.name == entry.name for other in entries) == 1
            return _load(entry.module, entry.name if unique else str(folder))
    # A private name, so that a folder called like an installed module shadows nothing.
    name = f"accelmark_case_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    _load_file(name, folder / "__init__.py", package=True)
    return _load(name, str(folder))


def _from_entry(entry: EntryPoint) -> LoadedCase:
    return _load(entry.module, entry.name)


def _load(module_name: str, location: str) -> LoadedCase:
    module = _import(module_name)
    case = _attribute(module, "CASE", Case)
    folder = Path(str(module.__file__)).parent
    configs = [_config(module_name, file) for file in sorted(folder.glob("config_*.py"))]
    unasked: dict[str, str] = {}
    for found in discover():
        if found.vendor is None:
            continue
        try:
            added = found.vendor.hardware_configs(case)
        except Exception as error:  # one vendor's mistake keeps no other from running
            unasked[found.name] = one_line(error)
        else:
            configs += [Config(value, f"plugin {found.name}") for value in added]
    _refuse_doubles(case, configs)
    return LoadedCase(case, location, folder, tuple(sorted(configs, key=lambda c: c.value.name)), unasked)


def _config(package: str, file: Path) -> Config:
    # A dot in the topology is none between packages: relative imports in the file start from `package`.
    module = _load_file(f"{package}.{file.stem.replace('.', '·')}", file)
    config = _attribute(module, "CONFIG", HardwareConfig)
    if file.stem != f"config_{config.name}":
        raise UsageError(
            f"{file}: its topology is {config.name}",
            f"rename the file to config_{config.name}.py or correct it",
        )
    return Config(config, file.name)


def _refuse_doubles(case: Case, configs: list[Config]) -> None:
    seen: dict[str, str] = {}
    for config in configs:
        name = config.value.name
        if name in seen:
            raise UsageError(
                f"case {case.name!r} has config {name} twice: from {seen[name]} and from {config.source}",
                "remove or rename one of them",
            )
        seen[name] = config.source


def _load_file(name: str, file: Path, *, package: bool = False) -> ModuleType:
    """Import ``file`` as module ``name``."""
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(file.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _guarded(functools.partial(spec.loader.exec_module, module), file)
    except UsageError:
        del sys.modules[name]
        raise
    return module


def _import(name: str) -> ModuleType:
    return _guarded(lambda: importlib.import_module(name), _origin(name) or name)


def _origin(name: str) -> str | None:
    """The file of module ``name``; None where it is not found or its package does not import."""
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit):
        return None
    return spec.origin if spec else None


def _guarded(action: Callable[[], T], source: object) -> T:
    """Run an import; whatever it raises becomes an error that names the file, field and value."""
    try:
        return action()
    except ValidationError as error:
        raise UsageError(explain(error, str(source)), f"correct the field in {source}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{source} cannot be imported: {type(error).__name__}: {error}", f"repair {source}"
        ) from error


def _attribute(module: ModuleType, name: str, expected: type[T]) -> T:
    value = getattr(module, name, None)
    if not isinstance(value, expected):
        what = "is missing" if value is None else f"is {type(value).__name__}, not a {expected.__name__}"
        raise UsageError(
            f"{module.__file__}: {name} {what}",
            f"define {name} = {expected.__name__}(...)",
        )
    return value
