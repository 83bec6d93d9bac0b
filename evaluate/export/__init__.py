"""Feature evidence in the file formats of other tools: each file a function of the evidence, or of the code, alone."""
