"""What a GPU gives, for tests without one."""

import torch


def a_mark() -> torch.cuda.Event:
    """A point in a GPU's work, as ``common.device.mark`` returns it. Without a GPU nothing can be done with it."""
    return torch.cuda.Event() if torch.cuda.is_available() else object.__new__(torch.cuda.Event)
