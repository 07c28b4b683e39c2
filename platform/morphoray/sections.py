"""Sections of a configuration: typed and frozen, from YAML and overrides, with errors that name the key."""

import reprlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from morphoray.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)

_LISTS = {"tuple_type", "list_type", "set_type", "frozen_set_type"}  # pydantic's names of what was expected
_MAPPINGS = {"dict_type", "mapping_type", "model_type", "model_attributes_type"}


def build(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Validate `values` as `model`; ConfigError lists every wrong key, and the known ones for an unknown."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, where, item) for item in error.errors())) from None


def _explain(model: type[BaseModel], where: str, item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([part for part in [where, *path] if part])
    if item["type"] == "extra_forbidden":
        known = _known(path[-1], _fields_at(model, path[:-1]))
        return f"{key}: unknown key, found {_shown(item['input'])}.{known}"
    if item["type"] == "missing":
        return f"{key}: missing. Add it to the configuration, or pass --set {key}=VALUE."
    found = "" if isinstance(item["input"], dict) else f", found {_shown(item['input'])}"
    if item["type"] in _LISTS:
        one = f", for one [{item['input']}]" if isinstance(item["input"], str | int | float) else ""
        return f"{key}: expected a list{one}{found or ', found a mapping'}."
    if item["type"] in _MAPPINGS:
        known = ", ".join(sorted(_fields_at(model, path)))
        return f"{key}: expected a mapping of keys to values{f' ({known})' if known else ''}{found}."
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{found}."


def _known(key: str, names: Sequence[str]) -> str:
    """The known keys beside an unknown one, and the one that was likely meant."""
    if not names:
        return ""
    close = get_close_matches(key, names, 1)
    return f" Known keys here: {', '.join(sorted(names))}." + (f" Did you mean {close[0]}?" if close else "")


def _shown(value: Any) -> str:
    """A value's repr, cut where it is long: what YAML's aliases nest has no end. Of a mapping none of it."""
    if isinstance(value, dict):
        return "a mapping"
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 3, 20, 10
    short.maxstring = short.maxother = 200
    return short.repr(value)


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of the section at `path` below `model`; none where no section is known there."""
    parts = iter(path)
    for part in parts:
        field = model.model_fields.get(part)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            return []
        model, keyed = inner
        if keyed and next(parts, None) is None:  # a mapping or list of sections is none itself
            return []
    return list(model.model_fields)


def _section_in(annotation: Any, keyed: bool = False) -> tuple[type[BaseModel], bool] | None:
    """The section that a field holds, and whether a mapping's key or a list's index leads to it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, keyed
    keyed = keyed or get_origin(annotation) in (dict, list, tuple)
    found = (_section_in(part, keyed) for part in get_args(annotation))
    return next(filter(None, found), None)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with every `a.b=c` applied; c is read as YAML, so 3, true, null and [a, b] are typed."""
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {override}: expected a.b=c, for one training.max_steps=500.")
        target = values
        *parents, last = path.split(".")
        for part in parents:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {part} holds a value, not a section.")
        target[last] = _read_yaml(text, f"--set {override}")
    return values


class _SafeLoader(yaml.SafeLoader):
    """PyYAML's own, but a key that is there twice is an error: it would keep the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _read_yaml(text: str, where: str) -> Any:
    """The value of YAML `text`. Raises ConfigError for any that can't be read."""
    try:
        return yaml.load(text, _SafeLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: for one the date 2020-13-45
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def read_values(text: str, where: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping that YAML `text` is, with overrides applied. Raises ConfigError for any other text."""
    values = _read_yaml(text, where)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: expected a mapping with run_dir and other keys; found {type(values).__name__}."
        )
    return apply_overrides(values, overrides)
