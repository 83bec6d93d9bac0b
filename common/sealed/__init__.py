"""Files that carry what their bytes must be: JSON documents, tensors, and a list for a whole folder."""
