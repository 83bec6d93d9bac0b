"""What other tools store: JSON, safetensors, npz and PyTorch files, of which no byte is ever executed."""
