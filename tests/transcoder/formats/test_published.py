"""Addresses on the Hub, and both files of one commit, with a fake client."""

from pathlib import Path

import huggingface_hub
import pytest

from common.errors import UsageError
from transcoder.formats.published import fetch_published

COMMIT = "a" * 40


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """The requests to the client; it answers with files as its cache has them, snapshots by commit."""
    requests: list[tuple[str, str, str | None]] = []

    def hf_hub_download(repository: str, filename: str, *, revision: str | None) -> str:
        requests.append((repository, filename, revision))
        path = tmp_path / "models--user--name" / "snapshots" / COMMIT / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return requests


@pytest.mark.parametrize(
    ("address", "inside", "revision"),
    [
        ("hf:user/name", "", None),
        ("hf:user/name/layer08", "layer08/", None),
        ("hf:user/name@v1/deep/layer08/", "deep/layer08/", "v1"),
    ],
)
def test_both_files_come_from_one_commit(
    requests: list[tuple[str, str, str | None]], address: str, inside: str, revision: str | None
) -> None:
    folder = fetch_published(address)
    assert requests == [
        ("user/name", f"{inside}config.json", revision),
        ("user/name", f"{inside}transcoder.safetensors", COMMIT),
    ]
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"config.json", "transcoder.safetensors"}


@pytest.mark.parametrize("address", ["hf:", "hf:user", "user/name", "hf:user/name/../x", "hf:user/name@", "hf:a b/c"])
def test_what_is_no_address_is_refused_before_the_network(
    requests: list[tuple[str, str, str | None]], address: str
) -> None:
    with pytest.raises(UsageError, match="is not an address on the Hub"):
        fetch_published(address)
    assert requests == []
