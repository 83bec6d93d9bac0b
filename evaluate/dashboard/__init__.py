"""The offline pages that show feature evidence: a folder of plain files, opened from disk."""
