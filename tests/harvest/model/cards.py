"""Two cards on a machine without: tensors that say they are on ``cuda:0`` or ``cuda:1`` while the CPU computes them.

Every torch call checks, as a GPU would, that its tensors are on one device; its result is there too. So code that
forgets a move fails here with the message that it would fail with there, and the numbers are real.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_DEVICE = torch.Tensor.device.__get__
_ANYWHERE = {"copy_", "__set__", "__deepcopy__", "data_ptr", "detach", "numel"}


_cards_by_storage: dict[int, torch.device] = {}


def card_of(tensor: torch.Tensor) -> torch.device:
    """The device that a tensor names. A parameter is made without a torch call, and is where the tensor in it is."""
    if isinstance(tensor, torch.nn.Parameter) and not hasattr(tensor, "_card"):
        return _cards_by_storage.get(tensor.untyped_storage().data_ptr(), torch.device("cpu"))
    return getattr(tensor, "_card", torch.device("cpu"))


def put(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """Let a tensor say that it is on ``device``."""
    tensor._card = torch.device(device)
    _cards_by_storage[tensor.untyped_storage().data_ptr()] = tensor._card
    return tensor


class Cards(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == _DEVICE:
            return card_of(args[0])
        if func is torch.Tensor.to:
            return self._moved(args, kwargs)
        if func is torch.Tensor.cpu:
            return self._moved((args[0], "cpu"), {})
        if func is torch.Tensor.pin_memory:
            return args[0]
        if kwargs.get("device") is not None:
            here = kwargs.pop("device")
            return tree_map(lambda value: put(value, here) if _is_tensor(value) else value, func(*args, **kwargs))
        return self._computed(func, name, args, kwargs)

    def _moved(self, args: Any, kwargs: Any) -> torch.Tensor:
        tensor, *rest = args
        devices = [value for value in (*rest, kwargs.pop("device", None)) if isinstance(value, str | torch.device)]
        devices += [card_of(value) for value in rest if _is_tensor(value)]
        kept = [value for value in rest if isinstance(value, torch.dtype)]
        kwargs.pop("non_blocking", None)
        moved = tensor.to(*kept, **kwargs) if kept or kwargs else tensor
        here = torch.device(devices[0]) if devices else card_of(tensor)
        return put(moved.view_as(moved) if moved is tensor and here != card_of(tensor) else moved, here)

    def _computed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if _is_tensor(value)]
        # A CPU tensor may be a number beside tensors of a card, and an index into them.
        free = name == "__getitem__"
        cards = {card_of(value) for value in tensors if card_of(value).type != "cpu" or (value.ndim and not free)}
        if len(cards) > 1 and name not in _ANYWHERE:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {cards} in {name}")
        result = func(*args, **kwargs)
        own = {id(value) for value in tensors}
        for value in tree_leaves(result):
            if _is_tensor(value) and id(value) not in own and cards:
                put(value, card_of(tensors[0]) if name in _ANYWHERE else next(iter(cards)))
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
