"""The settings of a pipeline: pipeline.yaml with the overrides of ``--set``, checked together.

The class of each section is in the ``config.py`` of its stage.
"""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from cache.config import CacheSettings
from common.errors import UsageError
from common.settings import PathText, Settings
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from finetune.config import FinetuneSettings
from harvest.config import HarvestSettings
from nestcoder.yamlfile import KeyPath, YamlFile, parse_scalar, read_yaml
from train.config import LogSettings, TrainSettings

_SHOWN = 80
"""Characters of an override or a wrong value that a message repeats."""


class PipelineSettings(Settings):
    """Everything that determines a run's numbers, except the layer."""

    model: PathText = "models/gpt2-stdlib"
    """A local Hugging Face folder, a Hub name, or an alias such as gpt2 or gemma-2-2b."""
    runs: PathText = "runs"
    """The folder for caches, transcoders and reports. ``~`` and ``$NAME`` are replaced, as in every path."""
    harvest: HarvestSettings = HarvestSettings()
    cache: CacheSettings = CacheSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    features: FeatureSettings = FeatureSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    log: LogSettings = LogSettings()


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Read ``path`` (None: only defaults), apply ``KEY=VALUE`` overrides and check everything.

        settings = nestcoder.load_settings("pipeline.yaml", ["train.steps=500", "model=gpt2"])
        settings.train.steps  # 500

    Raises UsageError that lists every problem, each with file and line (or the override) and a suggestion.
    """
    file = read_yaml(Path(path)) if path else YamlFile(name="the defaults", data={}, lines={})
    for section, value in list(file.data.items()):
        if value is None and _section(PipelineSettings, section):
            file.data[section] = {}  # a section whose every line is commented out
    sources = {_lay_over(file.data, text): f"--set {_shortened(text)}" for text in overrides}
    try:
        return PipelineSettings.model_validate_json(json.dumps(file.data))
    except ValidationError as error:
        problems = [_sentence(problem, file, sources) for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(dict.fromkeys(problems))) from None


def _lay_over(data: dict[str, Any], text: str) -> KeyPath:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"'--set {text}' is not KEY=VALUE.", remedy="Write for example --set train.lr=1e-4.")
    *sections, last = key.split(".")
    for section in sections:
        inner: Any = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"'{section}' in '--set {text}' is a value, not a section.")
        data = cast("dict[str, Any]", inner)
    data[last] = parse_scalar(value, name=f"--set {_shortened(text)}")
    return tuple(key.split("."))


def _sentence(problem: Any, file: YamlFile, sources: dict[KeyPath, str]) -> str:
    path: KeyPath = tuple(problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    name = ".".join(str(step) for step in path) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{_location(path, file, sources)}: unknown setting '{name}'.{_suggestion(path)}"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return f"{_locations_named(message, path, file, sources)}: {name}: {message}."
    return f"{_location(path, file, sources)}: {name}: {message}{_given(problem['input'])}."


def _location(path: KeyPath, file: YamlFile, sources: dict[KeyPath, str]) -> str:
    """The override, or file and line, of the value at ``path`` or of the nearest section that contains it."""
    enclosing = [sources[path[:end]] for end in range(len(path), 0, -1) if path[:end] in sources]
    inside = [text for source, text in sources.items() if source[: len(path)] == path]
    return next(iter(enclosing + inside), file.location(path))


def _locations_named(message: str, section: KeyPath, file: YamlFile, sources: dict[KeyPath, str]) -> str:
    """The locations of the settings in a message about a section: overrides, then lines of the file."""
    words = re.findall(r"[a-z][a-z0-9_]*", message)
    paths = [(*section, word) for word in dict.fromkeys(words)]
    overrides = [sources[path] for path in paths if path in sources]
    lines = [file.location(path) for path in paths if path in file.lines and path not in sources]
    # If none of these settings was given: the location of the section, or the overrides of its settings.
    inside = [text for path, text in sources.items() if path[: len(section)] == section]
    return " and ".join([*overrides, *lines] or inside or [file.location(section)])


def _given(value: Any) -> str:
    """The given value, shortened; '' for lists and sections, which are too long for a line."""
    if isinstance(value, dict | list):
        return ""
    return f" (given: {_shortened(repr(value))})"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _suggestion(path: KeyPath) -> str:
    fields: list[str] = []
    model: Any = PipelineSettings
    for key in path[:-1]:
        model = _section(model, str(key))
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
