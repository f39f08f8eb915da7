"""JSON of other tools, checked against what is read of it."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from labelmill.pipeline.annotations.formats.drawn import Findings

Model = TypeVar("Model", bound=BaseModel)

_MOST_MISTAKES = 10


def parsed(model: type[Model], values: Any, source: str, findings: Findings) -> Model | None:
    """Values as a model, keys that it does not have left out; None, with a problem per mistake, where they are not."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_input=False)[:_MOST_MISTAKES]:
            place = ".".join(map(str, mistake["loc"]))
            findings.problems.append(f"{source}: {place}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}")
        return None
