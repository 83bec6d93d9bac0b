"""Evidence in words: labels, pages, search, a report, the text of tokens."""
