"""What an entry of the page says whatever the dictionary is: of its training, of its reports, of the language model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.run_layout import CHECKPOINTS, CONFIG_FILE, LOG_FILE, RunFolders, is_name
from evaluate.browse.files import (
    SUMMARY_FILE,
    Entry,
    curves_of,
    earlier_reports,
    log_lines,
    read_object,
    read_text,
    relative,
    report_files,
)


def names_of(folders: RunFolders) -> list[str]:
    """Dictionaries that have begun, those of a sweep after their first one."""
    top = folders.layer_folder / "transcoder"
    signs = (CONFIG_FILE, LOG_FILE, CHECKPOINTS)
    found = {path.parent.relative_to(top).as_posix() for sign in signs for path in top.glob(f"**/{sign}")}
    return sorted(name for name in found if is_name(name) and CHECKPOINTS not in name.split("/"))


def begun(runs: Path, folder: Path, entry: Entry) -> Entry:
    """The entry with what the training in ``folder`` left: its config.json if it is done, and its log."""
    config = read_object(folder / CONFIG_FILE, entry) if (folder / CONFIG_FILE).is_file() else {}
    log = log_lines(folder / LOG_FILE, entry)
    last = log[-1] if log else {}
    return (
        entry
        | {
            "kind": config.get("kind", "transcoder"),
            "state": "trained" if config else "in training",
            "folder": relative(folder, runs),
            "log": curves_of(log),
            "date": config.get("completed_at"),
            "activation": config.get("activation"),
            "top_k": config.get("top_k"),
            "dict_size": config.get("dict_size"),
            "prefixes": config.get("prefixes"),
            "tokens": config.get("tokens_trained", last.get("tokens")),
            "steps": config.get("steps", last.get("step")),
            "seed": config.get("seed"),
        }
        | _sampled(config, log)
    )


def _sampled(config: Mapping[str, Any], log: list[dict[str, Any]]) -> Entry:
    """Of the log: the sample of held-out rows that checkpoints are measured on, and the last training batch."""
    fvu = _last(log, "held_out_fvu_per_prefix")
    l0 = _last(log, "l0_per_prefix")
    dead = config.get("dead", _last(log, "dead"))
    return {
        "measured": "log" if fvu or l0 else None,
        "fvu": fvu,
        "l0": l0,
        "dead": None if dead is None else [dead],
        "absorption": None,
        **spliced_numbers(None),
    }


def _last(log: Iterable[Mapping[str, Any]], name: str) -> Any:
    return next((line[name] for line in reversed(list(log)) if name in line), None)


def spliced_numbers(spliced: Mapping[str, Any] | None) -> Entry:
    """Of the language model with the dictionary in its place, prefix by prefix; None where it was not spliced in."""
    per_prefix = spliced["per_prefix"] if spliced else None
    return {name: per_prefix and [numbers.get(name) for numbers in per_prefix] for name in ("delta", "kl", "top1")}


def reported(runs: Path, report: Path, entry: Entry) -> Entry:
    """What lies in the folder of a report, and the reports before it."""
    return {
        "summary": read_text(report / SUMMARY_FILE, entry),
        "report": [relative(path, runs) for path in report_files(report)],
        "earlier": earlier_reports(runs, report),
    }
