"""The settings of a whole pipeline: pipeline.yaml, with ``--set`` on top, checked as one.

Each section's class stands beside the code that reads it, in that stage's ``config.py``.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from cache.config import CacheSettings
from common.errors import UsageError
from common.settings import Settings
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from harvest.config import HarvestSettings
from nestcoder.yamlfile import KeyPath, YamlFile, parse_scalar, read_yaml
from train.config import LogSettings, TrainSettings


class PipelineSettings(Settings):
    """Everything that decides a run's numbers, except the layer."""

    model: str = "models/gpt2-stdlib"
    """A local Hugging Face folder, a Hub name, or an alias such as gpt2 or gemma-2-2b."""
    runs: str = "runs"
    """The folder that caches, transcoders and reports go into."""
    harvest: HarvestSettings = HarvestSettings()
    cache: CacheSettings = CacheSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    features: FeatureSettings = FeatureSettings()
    log: LogSettings = LogSettings()


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Read ``path`` (None: defaults alone), lay ``KEY=VALUE`` overrides on top and check it all.

        settings = nestcoder.load_settings("pipeline.yaml", ["train.steps=500", "model=gpt2"])
        settings.train.steps  # 500

    Raises UsageError that lists every problem, each with file and line (or the override) and a suggestion.
    """
    file = read_yaml(Path(path)) if path else YamlFile(name="the defaults", data={}, lines={})
    sources = {override_path: f"--set {text}" for text in overrides for override_path in [_lay_over(file.data, text)]}
    try:
        return PipelineSettings.model_validate_json(json.dumps(file.data))
    except ValidationError as error:
        problems = [_sentence(problem, file, sources) for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(dict.fromkeys(problems))) from None


def _lay_over(data: dict[str, Any], text: str) -> KeyPath:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"'--set {text}' is not KEY=VALUE.", remedy="Write for example --set train.lr=1e-4")
    *sections, last = key.split(".")
    for section in sections:
        inner: Any = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"'{section}' in '--set {text}' is a value, not a section.")
        data = cast("dict[str, Any]", inner)
    data[last] = parse_scalar(value)
    return tuple(key.split("."))


def _sentence(problem: Any, file: YamlFile, sources: dict[KeyPath, str]) -> str:
    path: KeyPath = tuple(problem["loc"])
    where = next((sources[path[:end]] for end in range(len(path), 0, -1) if path[:end] in sources), file.where(path))
    name = ".".join(str(part) for part in path) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown setting '{name}'.{_suggestion(path)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | list) else f" (given: {problem['input']!r})"
    return f"{where}: {name}: {message}{given}."


def _suggestion(path: KeyPath) -> str:
    fields: list[str] = []
    model: Any = PipelineSettings
    for part in path[:-1]:
        model = _section(model, str(part))
    if model is not None:
        fields = list(model.model_fields)
    close = difflib.get_close_matches(str(path[-1]), fields, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known here: {', '.join(fields)}." if fields else ""


def _section(model: Any, name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name) if model is not None else None
    if field is None:
        return None
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
