"""Federated methods and references, one file each: what is sent, trained, aggregated and kept.

A file of this folder that defines a subclass of `Method` or `Reference` is a method under the file's name.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from matu.errors import ConfigError
from matu.methods.base import Local, Method, Problem, Round, State
from matu.methods.reference import Reference

_SHARED = ("base", "reference")


def method_names() -> tuple[str, ...]:
    """Names of the built-in methods and references, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def method_name(reference: str) -> str:
    """What messages and results call a method: its name, or the name of its file."""
    return Path(reference).stem if reference.endswith(".py") else reference


def method_source(reference: str) -> str:
    """SHA-256 (hex) of a method's own file, or a built-in one's revision (empty: the first)."""
    if reference.endswith(".py"):
        return hashlib.sha256(Path(reference).read_bytes()).hexdigest()
    revision = find_method(reference).revision
    return str(revision) if revision else ""


def find_method(reference: str) -> type[Method] | type[Reference]:
    """The method of a built-in name ("fedavg") or of a Python file ("my/median.py") that defines one.

    Raises
    ------
    ConfigError
        If there is none; the message lists the built-in names.
    """
    if reference.endswith(".py"):
        return _only_method(_load_file(Path(reference)), reference)
    if len(reference.split()) > 1:
        raise ConfigError(_with_options(*reference.split()))
    if reference not in method_names():
        raise ConfigError(
            f"method '{reference}': unknown; expected one of {', '.join(method_names())}, or a Python file with one"
        )
    return _only_method(importlib.import_module(f"{__name__}.{reference}"), reference)


def _with_options(name: str, *words: str) -> str:
    """What is wrong with the form of a comparison, "matu_plus evidence=false", in a single run."""
    own = {field.name for field in dataclasses.fields(find_method(name).Options)}
    options = [word for word in words if word.partition("=")[0] in own]
    of_the_run = [f"--{word.replace('_', '-').replace('=', ' ')}" for word in words if word not in options]
    right = " ".join([f"--method {name}", *(["--options", *options] if options else []), *of_the_run])
    return f"method '{' '.join([name, *words])}': the form of matu compare; of a single run: {right}"


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"matu_method_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"method '{path}': no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"method '{path}': cannot be imported ({type(error).__name__}: {error})") from error
    return module


def _only_method(module: ModuleType, reference: str) -> type[Method] | type[Reference]:
    own = {
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, (Method, Reference)) and kind.__module__ == module.__name__
    }
    if len(own) != 1:
        raise ConfigError(f"method '{reference}': its file defines {len(own)} methods, expected one")
    found = own.pop()
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"method '{reference}': {found.__name__} does not say {missing}")
    return found


__all__ = [
    "Local", "Method", "Problem", "Reference", "Round", "State", "find_method", "method_name", "method_names",
    "method_source",
]  # fmt: skip
