"""The standard library as text."""

from harvest.config import HarvestSettings
from harvest.text.documents import open_documents
from harvest.text.rows import TextAccess
from harvest.text.stdlib import stdlib_files, stdlib_identity


def read(documents, state=None):
    return list(documents.read(state))


def test_the_standard_library_is_its_files_and_goes_on_from_a_state():
    documents = open_documents(HarvestSettings())
    documents_read = read(documents)
    assert 0 < len(documents_read) <= len(stdlib_files())
    assert [text for text, _ in read(documents, 500)] == [text for text, _ in documents_read[500:]]
    assert documents.identity() == {"kind": "stdlib", **vars(stdlib_identity())}
    shares = [read(open_documents(HarvestSettings(), TextAccess(rank=rank, world=3))) for rank in range(3)]
    assert sum(len(share) for share in shares) == len(documents_read)
