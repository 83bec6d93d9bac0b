"""The ``cache`` commands: each calls its tool and returns the result as JSON and as text."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from common.units import in_bytes
from nestcoder.invocation import CommandResult
from nestcoder.progress import shown_progress

if TYPE_CHECKING:
    from cache.format.codec import Codec
    from cache.tools.info import ActivationInfo, CacheInfo


def cache_info(path: str) -> CommandResult:
    """The contents of the cache, in numbers."""
    from cache.tools.info import cache_info as read_info

    info = read_info(path)
    return CommandResult(info.to_json(), "\n".join(_info_lines(info)))


def _info_lines(info: "CacheInfo") -> list[str]:
    identity = info.identity
    widths = [f"{name} {identity.get(f'{name}_site', '')} {array.width}" for name, array in _arrays(info)]
    text = identity.get("dataset")
    facts = {
        "cache": info.path,
        "model": f"{identity.get('model', '?')}, layer {identity.get('layer', '?')}",
        "sites": ", ".join([*widths, info.dtype]),
        "provenance": str(identity.get("provenance") or ""),
        "text": str(text.get("name") or text.get("kind", "")) if isinstance(text, dict) else str(text or ""),
        "rows": "   ".join(_row_counts(info, group) for group in info.rows),
        "size": f"{in_bytes(info.bytes)} in {info.files} files",
        **{name: _array_statistics(array) for name, array in _arrays(info)},
        "special": f"{info.special_rows:,} training rows of special tokens, masked" if info.special_rows else "",
        "mixing": _mixing_score(info),
        **_concentration_lines(info),
        "fingerprint": info.fingerprint,
    }
    return [f"{name:<11}  {value}" for name, value in facts.items() if value]


def _concentration_lines(info: "CacheInfo") -> dict[str, str]:
    found = info.concentration
    if not found:
        return {}
    rows = ", ".join(
        f"{share:.1%} in the largest {fraction:.2%} of rows" for fraction, share in found.row_shares.items()
    )
    dimensions = ", ".join(f"{share:.1%} in {count}" for count, share in found.dimension_shares.items())
    largest = found.largest_rows[0]
    named = ", ".join(str(dimension) for dimension, _ in found.largest_dimensions[:3])
    row = f"row {largest.row}: token {largest.token}, document {largest.document}, position {largest.position}"
    return {
        "variance": f"of the {found.column}, {found.rows:,} rows: {rows} (most in {row})",
        "dimensions": f"{dimensions} of {found.width} dimensions (most in {named})",
        "warning": found.warning,
    }


def _arrays(info: "CacheInfo") -> "list[tuple[str, ActivationInfo]]":
    return [(name, array) for name, array in (("source", info.source), ("target", info.target)) if array]


def _row_counts(info: "CacheInfo", group: str) -> str:
    rows = info.rows[group]
    committed = info.committed[group]
    count = f"{rows:,}" if rows == committed else f"{committed:,} of {rows:,} (run the harvest again to go on)"
    documents = f" of {info.documents[group]:,} documents" if info.documents else ""
    return f"{group.replace('_', ' ')} {count}{documents}"


def _array_statistics(array: "ActivationInfo") -> str:
    largest = f"largest norm {array.largest_norm:.4g} (row {array.largest_row})"
    floor = f"{array.storage_floor:.1e} of it lost by storing" if array.storage_floor else "stored without loss"
    return f"mean square {array.mean_square:.4g}, variance {array.variance_sum:.4g}, {floor}, {largest}"


def _mixing_score(info: "CacheInfo") -> str:
    if not info.mixing:
        return ""
    found = info.mixing
    pairs = found.pairs / found.pairs_ideal if found.pairs_ideal else 1.0
    documents = f"{found.distinct:.0f} documents in a batch of {found.batch_rows:,}"
    return f"{found.score:.3f} of a uniform shuffle ({documents}; same-document pairs {pairs:.2f} times as many)"


def cache_verify(path: str, *, fast: bool) -> CommandResult:
    """Check the cache. Raises DamagedError that names every fault."""
    from cache.tools.verify import verify_cache

    with shown_progress() as progress:
        if "://" in path:
            from cache.tools.verify_remote import verify_remote

            found = verify_remote(path, progress=progress)
        else:
            found = verify_cache(Path(path), fast=fast, progress=progress)
    found.require_sound()
    speed = found.bytes / max(found.seconds, 1e-9)  # a clock may show no time at all
    checked = "sizes and metadata" if found.fast else "every byte"
    lines = [
        f"The cache is undamaged: {checked} of {found.files} files, {in_bytes(found.bytes)}.",
        f"{found.seconds:.1f} s, {in_bytes(speed)} a second." if not found.fast else "",
        "" if found.complete else f"It is not finished: it has {found.segments[0]} of {found.segments[1]} segments.",
        f"{len(found.leftovers)} files of an interrupted harvest are not counted." if found.leftovers else "",
    ]
    return CommandResult(asdict(found) | {"complete": found.complete}, "\n".join(line for line in lines if line))


def cache_pack(path: str, out: Path, codec: "Codec") -> CommandResult:
    """Write the cache with another codec into another folder; ``none`` unpacks it."""
    from cache.tools.pack import pack_cache

    with shown_progress() as progress:
        done = pack_cache(Path(path), out, codec=codec, progress=progress)
    verb = "Unpacked" if codec == "none" else "Packed"
    sizes = f"{in_bytes(done.bytes_before)} as {in_bytes(done.bytes_after)}"
    text = f"{verb} into {out}: {done.files} files of rows, {sizes}, ratio {done.ratio:.3f}, codec {done.codec}."
    return CommandResult(asdict(done) | {"ratio": done.ratio}, text)


def cache_repair(path: str) -> CommandResult:
    """Move damaged shards away and mark their rows for the next harvest."""
    from cache.tools.repair import QUARANTINE, repair_cache

    with shown_progress() as progress:
        if "://" in path:
            from cache.tools.verify_remote import repair_remote

            done = repair_remote(path, progress=progress)
        else:
            done = repair_cache(Path(path), progress=progress)
    if not done.faults:
        return CommandResult(asdict(done), "Nothing is damaged.")
    lines = [f"{len(done.faults)} faults:", *(f"  {fault}" for fault in done.faults)]
    if done.quarantined:
        lines.append(f"{len(done.quarantined)} files were moved to {Path(path) / QUARANTINE}.")
    if done.rewritten:
        lines.append(f"Written again: {', '.join(done.rewritten)}.")
    segments = ", ".join(f"{group} {segment}" for group, segment in done.revoked)
    lines.append(f"To harvest again: {done.rows} rows (segments {segments})." if segments else "No rows were lost.")
    again = "it uploads or writes these segments" if "://" in path else "it writes these segments and no others"
    lines.append(f"Run the same harvest again: {again}.")
    return CommandResult(asdict(done), "\n".join(lines))
