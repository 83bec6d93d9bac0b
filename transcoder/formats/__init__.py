"""One module a file format of a transcoder, ours and others'."""
