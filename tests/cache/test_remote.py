import shutil
import socket
import threading
import warnings

import fsspec
import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.loader import Loader
from cache.open import open_cache
from cache.reader import CacheReader
from cache.remote_reader import open_remote
from cache.tools.info import cache_info
from cache.tools.verify import verify_cache
from cache.tools.verify_remote import verify_remote
from common.errors import CapacityError, DamagedError, DiskError, MismatchError, UsageError


@pytest.fixture
def url(pages):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.put(f"{pages}/", "/bucket/cache/", recursive=True)
    yield "memory://bucket/cache"
    system.store.clear()


def same_rows(first, second, name="train"):
    first_split, second_split = first.split(name), second.split(name)
    for start in range(0, len(first_split), 100):
        left, right = first_split.rows(slice(start, start + 100)), second_split.rows(slice(start, start + 100))
        if not (torch.equal(left.source, right.source) and torch.equal(left.target, right.target)):
            return False
    columns = ("tokens", "document", "position")
    return all((getattr(first_split, column) == getattr(second_split, column)).all() for column in columns)


def test_a_cache_opens_on_a_url_with_the_same_rows(url, pages, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote, local = open_cache(url), CacheReader.open(pages)
    assert remote.fingerprint == local.fingerprint
    assert (remote.arrays["gain"] == local.arrays["gain"]).all()
    assert remote.statistics.source.variance_sum == local.statistics.source.variance_sum
    assert same_rows(remote, local)
    assert same_rows(remote, local, "held_out")
    remote_batches = Loader(remote, batch_rows=256, seed=1, epochs=1, threads=2)
    with remote_batches, Loader(local, batch_rows=256, seed=1, epochs=1) as local_batches:
        for left, right in zip(remote_batches, local_batches, strict=True):
            assert torch.equal(left.source, right.source)


def test_only_chunks_that_are_needed_are_copied_and_only_once(url, tmp_path):
    reader = open_remote(url, local=tmp_path)
    before = reader.copies.fetched
    reader.split("train").gather("source", np.array([0, 1, 63]))
    assert reader.copies.fetched == before + 1
    reader.split("train").gather("source", np.array([5, 130]))
    assert reader.copies.fetched == before + 2
    again = open_remote(url, local=tmp_path)
    again.split("train").gather("source", np.array([0, 130]))
    assert again.copies.fetched == 0


def test_the_copies_keep_within_their_limit(url, pages, tmp_path):
    chunk = 64 * 64 * 4
    reader, local = open_remote(url, local=tmp_path, limit_bytes=5 * chunk), CacheReader.open(pages)
    assert same_rows(reader, local)
    kept = sum(
        file.stat().st_size for name in ("source", "target") for file in tmp_path.rglob(f"{name}/*") if file.is_file()
    )
    assert chunk <= kept <= 5 * chunk
    assert same_rows(reader, local), "what was given up is copied again"
    with pytest.raises(CapacityError, match="but the limit is"):
        reader.split("train").rows(slice(None))


def test_many_threads_under_a_small_limit_read_what_they_ask_for(url, pages, tmp_path):
    reader, local = open_remote(url, local=tmp_path, limit_bytes=40 * 64 * 64 * 4), CacheReader.open(pages)
    options = {"batch_rows": 32, "seed": 3, "epochs": 2}
    with Loader(reader, threads=4, **options) as remote_batches, Loader(local, **options) as local_batches:
        for left, right in zip(remote_batches, local_batches, strict=True):
            assert torch.equal(left.source, right.source)
            assert torch.equal(left.target, right.target)


def test_a_wrong_copy_is_fetched_again(url, pages, tmp_path):
    open_remote(url, local=tmp_path).split("train").gather("source", np.array([0]))
    (copy,) = [file for file in tmp_path.rglob("train/source/0") if file.is_file()]
    data = bytearray(copy.read_bytes())
    data[100] ^= 4
    copy.write_bytes(data)
    reader = open_remote(url, local=tmp_path)
    assert torch.equal(
        reader.split("train").gather("source", np.array([0])),
        CacheReader.open(pages).split("train").gather("source", np.array([0])),
    )
    assert reader.copies.fetched == 1


def test_damage_on_the_remote_side_is_named(url, tmp_path):
    system = fsspec.filesystem("memory")
    path = "/bucket/cache/rows.zarr/train/source/c.0.0"
    data = bytearray(system.cat_file(path))
    data[100] ^= 4
    system.pipe_file(path, bytes(data))
    with pytest.raises(DamagedError, match=r"checksum[^\n]*\nmemory://bucket/cache/rows\.zarr/train/source/c\.0\.0"):
        open_remote(url, local=tmp_path).split("train").rows(slice(0, 4))
    system.rm(path)
    with pytest.raises(DamagedError, match="missing"):
        open_remote(url, local=tmp_path).split("train").rows(slice(0, 4))


def test_another_cache_than_expected_and_no_cache_are_refused(url, tmp_path):
    with pytest.raises(MismatchError, match="layer is 3, not 4"):
        open_cache(url, expect={"layer": 4})
    with pytest.raises(DamagedError, match="missing"):
        open_remote("memory://bucket/nothing", local=tmp_path)
    with pytest.raises(UsageError, match="cannot be opened"):
        open_remote("nonsense://bucket/cache", local=tmp_path)


def test_a_remote_cache_is_verified_and_described_at_its_url(url, pages, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not verify_remote(url).faults
    assert cache_info(url).mixing == cache_info(pages).mixing
    system = fsspec.filesystem("memory")
    system.rm("/bucket/cache/rows.zarr/train/source/c.1.0")
    system.pipe_file("/bucket/cache/rows.zarr/train/target/c.1.0", b"short")
    assert [fault.kind for fault in verify_remote(url).faults] == ["missing", "truncated"]


class Proxy:
    """Passes a connection on to a server, and breaks it in the middle of an answer when told to."""

    def __init__(self, port):
        self.server, self.target = socket.create_server(("127.0.0.1", 0)), port
        self.port, self.breaks, self.broken = self.server.getsockname()[1], 0, 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self.carry, args=(client, upstream, False), daemon=True).start()
            threading.Thread(target=self.carry, args=(upstream, client, True), daemon=True).start()

    def carry(self, source, to, is_answer):
        try:
            while data := source.recv(4096):
                if is_answer and self.breaks and len(data) > 2000:
                    self.breaks, self.broken = self.breaks - 1, self.broken + 1
                    to.sendall(data[: len(data) // 2])
                    break
                to.sendall(data)
        except OSError:
            pass
        for end in (source, to):
            with_shutdown(end)


def with_shutdown(end):
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.fixture(scope="module")
def s3():
    """An S3 server on this machine, behind a connection that can be broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    yield proxy
    proxy.server.close()
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The URL of an empty bucket."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{s3.port}"})
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    if system.exists("store"):
        system.rm("store", recursive=True)
    system.mkdir("store")
    return "s3://store"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_harvest_commits_to_s3_and_training_reads_from_it(bucket, s3, make_toy, pages, tmp_path):
    toy = make_toy.paged(remote=bucket)
    folder = tmp_path / "model" / "layer03" / "cache"
    toy.write(folder, stop=250)
    shutil.rmtree(folder)
    given = toy.write(folder)
    assert 0 < given < 540, "a new machine goes on where the remote journal ends"
    url = f"{bucket}/model/layer03/cache"
    reader, local = open_remote(url, local=tmp_path / "copies"), CacheReader.open(pages)
    assert reader.fingerprint == local.fingerprint
    s3.breaks = 3
    assert same_rows(reader, local)
    assert s3.broken == 3
    fsspec.filesystem("s3").get(f"{url}/", f"{tmp_path}/back/", recursive=True)
    assert not verify_cache(tmp_path / "back").faults


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_stays_down_is_one_sentence_and_a_rerun_goes_on(bucket, s3, make_toy, tmp_path):
    toy = make_toy(remote=bucket)
    folder = tmp_path / "model" / "layer03" / "cache"
    toy.write(folder, stop=6)
    system = fsspec.filesystem("s3")
    with toy.writer(folder) as writer:
        writer._partition._publisher._store._root = "no-such-bucket/x"
        with pytest.raises(DiskError, match="The network refused to write"):
            toy.feed(writer)
    toy.write(folder)
    system.invalidate_cache()
    system.get(f"{bucket}/model/layer03/cache/", f"{tmp_path}/back/", recursive=True)
    assert verify_cache(tmp_path / "back").complete


def test_what_is_not_here_is_read_from_below_the_remote_url(pages, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.put(f"{pages}/", "/bucket/gpt2/layer03/cache/", recursive=True)
    here, settings = tmp_path / "runs/gpt2/layer03/cache", CacheSettings(remote="memory://bucket/")
    assert same_rows(open_cache(here, settings), CacheReader.open(pages))
    tight = open_cache(here, CacheSettings(remote="memory://bucket", remote_bytes=1000))
    with pytest.raises(CapacityError):
        tight.split("train").rows(slice(None))
    system.store.clear()
    shutil.copytree(pages, here)
    assert same_rows(open_cache(here, settings), CacheReader.open(pages))
    with pytest.raises(UsageError, match="no cache here"):
        open_cache(tmp_path / "other", CacheSettings())


def test_checksums_of_rows_can_be_left_out_but_not_those_of_the_journal(pages, tmp_path, flip):
    shutil.copytree(pages, tmp_path / "cache")
    flip(tmp_path / "cache/rows.zarr/train/source/c.1.0", 77)
    all_rows = slice(None)
    with pytest.raises(DamagedError):
        open_cache(tmp_path / "cache", CacheSettings()).split("train").rows(all_rows)
    trusting = CacheSettings(check_reads=False)
    assert len(open_cache(tmp_path / "cache", trusting).split("train").rows(all_rows).source) == 2000
    flip(tmp_path / "cache/journal/part-00000.jsonl", 1000)
    with pytest.raises(DamagedError, match="journal"):
        open_cache(tmp_path / "cache", trusting)
