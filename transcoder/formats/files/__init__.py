"""Files of other tools: JSON, safetensors, npz and PyTorch files. Nothing in them is ever executed."""
