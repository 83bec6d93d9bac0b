"""What each kind of dictionary is to a training: its state, its step, its measure and its files."""
