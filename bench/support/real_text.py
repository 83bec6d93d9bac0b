"""Real English text from Debian's packages: what the benchmark on real models reads.

Chapters of the King James Bible, Perl's manual, the kernel's and C library's manual pages, the Debian handbook. Every
document is cut to its first characters, so that few tokens come from many documents, and their order is drawn once.
"""

import gzip
import html
import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("bible-kjv", "bible-kjv-text", "perl-doc", "manpages", "manpages-dev", "debian-handbook")
CHARACTERS = 4000
"""About a thousand tokens: of a hundred and fifty thousand tokens, no document holds one in a hundred."""
_SHORTEST = 400


def make_text(folder: Path) -> Path:
    """Fetch and unpack the packages below ``folder``, and write ``text.jsonl``, a document a line, where it is not."""
    out = folder / "text.jsonl"
    if out.exists():
        return out
    unpacked = folder / "unpacked"
    _fetch(folder / "packages", unpacked)
    documents = [text[:CHARACTERS] for text in _documents(unpacked) if len(text) >= _SHORTEST]
    random.Random(0).shuffle(documents)
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return out


def _fetch(packages: Path, unpacked: Path) -> None:
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, check=True)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)


def _documents(unpacked: Path) -> Iterator[str]:
    """Every document's text, package by package."""
    yield from _bible(unpacked)
    for path in sorted(unpacked.glob("usr/share/perl/*/pod/*.pod")):
        yield plain_pod(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted(unpacked.glob("usr/share/man/man?/*.[1-8].gz")):
        yield plain_roff(gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace"))
    for path in sorted(unpacked.glob("usr/share/doc/debian-handbook/html/en-US/*.html")):
        yield plain_html(path.read_text(encoding="utf-8", errors="replace"))


def _bible(unpacked: Path) -> list[str]:
    """The chapters, as the package's own program prints them: its data are compressed."""
    command = [str(unpacked / "usr/bin/bible"), "-p", str(unpacked / "usr/lib"), "gen1:1-rev22:21"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    return [flowing(chapter) for chapter in re.split(r"\n(?=\n[1-3A-Z][A-Za-z ]+ \d+\n)", printed)]


def plain_pod(text: str) -> str:
    """Perl's documentation without its commands and formatting codes; what a command is given stays."""
    lines = [
        re.sub(r"^=(head\d|item|over|back|for|begin|end|cut|encoding|pod)\b", "", line) for line in text.split("\n")
    ]
    return flowing(re.sub(r"[A-Z]<+\s*([^<>]*?)\s*>+", r"\1", "\n".join(lines)))


def plain_roff(text: str) -> str:
    """A manual page without its macros; what they emphasise stays."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith((".B", ".I", ".R", ".SH", ".SS")):
            lines.append(re.sub(r'^\.\w+\s*|"', "", line))
        elif line.startswith((".PP", ".TP", ".IP")):
            lines.append("")
        elif not line.startswith((".", "'")):
            lines.append(line)
    text = re.sub(r"\\f.|\\[&/,|^:]|\\c", "", "\n".join(lines))
    return flowing(re.sub(r"\\\((?:aq|em|en|co|bu)|\\e", " ", text).replace("\\-", "-"))


def plain_html(text: str) -> str:
    """What a page says, without its marks, scripts and styles."""
    text = re.sub(r"(?s)<(script|style|head)\b.*?</\1>", "", text)
    return flowing(html.unescape(re.sub(r"(?s)<[^>]*>", "", re.sub(r"</(p|h\d|li|div)>", "\n\n", text))))


def flowing(text: str) -> str:
    """Lines that belong to one paragraph on one line, paragraphs an empty line apart."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(found for paragraph in paragraphs if (found := re.sub(r"\s+", " ", paragraph).strip()))
