"""Say in one sentence what is wrong with a configuration, and what was probably meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

CONSEQUENCES = {"default_factory_not_called"}  # reported beside the mistake that caused them


def sentence_of(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence for the first mistake; unknown keys come with the nearest known one."""
    mistakes = [item for item in error.errors() if item["type"] not in CONSEQUENCES]
    first, *others = mistakes or error.errors()
    more = f" (and {len(others)} more)" if others else ""
    return f"{_phrase(first, model)}{more}"


def _phrase(mistake: ErrorDetails, model: type[BaseModel]) -> str:
    *parents, key = mistake["loc"] or ("",)
    place = ".".join(str(step) for step in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {place}; {_suggestion(str(key), _known_keys(model, parents))}"
    if mistake["type"] == "missing":
        return f"{place} is missing"
    said = mistake["msg"].removeprefix("Value error, ")
    return f"{place}: {said[0].lower()}{said[1:]}" if place else said


def _suggestion(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Field names at a location; pydantic's locations also name the kind taken in a union."""
    models = [model]
    for step in location:
        fields = [one.model_fields[str(step)] for one in models if str(step) in one.model_fields]
        below = [found for field in fields for found in _models_in(field.annotation)]
        models = below or [one for one in models if _is_kind(one, step)] or models
    return sorted({name for one in models for name in one.model_fields})


def _is_kind(model: type[BaseModel], step: int | str) -> bool:
    kind = model.model_fields.get("kind")
    return kind is not None and step in get_args(kind.annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - a type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {Annotated, Union, types.UnionType, tuple, list, dict}:
        for part in get_args(annotation):
            yield from _models_in(part)
