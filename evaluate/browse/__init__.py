"""A whole runs folder to look at: every transcoder in one table, on one page that opens from disk or is served live."""
