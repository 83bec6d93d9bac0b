"""Files with checksums: JSON documents, tensors, and a list for all files of a folder."""
