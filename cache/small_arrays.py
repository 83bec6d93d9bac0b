"""The small arrays of an open cache: a norm's gain and bias, the tokenizer, the layer's MLP, the unembedding."""

from functools import cached_property
from pathlib import Path

import numpy as np

from cache.format.manifest import Manifest, read_bound
from cache.format.parameters import PARAMETERS, UNEMBEDDING, read_parameter
from cache.storage.recompute import Mlp, mlp_of_arrays
from cache.storage.unembedding import Unembedding, unembedding_of_arrays
from common.errors import DamagedError


class SmallArrays:
    """What the cache in folder ``path`` stores in addition to its rows; ``device`` is that of the MLP."""

    def __init__(self, path: Path, manifest: Manifest, device: str) -> None:
        self.path = path
        self.manifest = manifest
        self.identity = manifest.identity
        self._device = device

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The small arrays of the cache by name, except the MLP and the unembedding. Raises DamagedError."""
        return {name: self._array(name) for name in self._names if not name.startswith(("mlp.", UNEMBEDDING))}

    @property
    def has_mlp(self) -> bool:
        """Whether the layer's MLP is stored instead of targets."""
        return any(name.startswith("mlp.") for name in self._names)

    @cached_property
    def mlp(self) -> Mlp:
        """The layer's MLP, which computes a target that is not stored. Raises DamagedError."""
        arrays = {name: self._array(name) for name in self._names if name.startswith("mlp.")}
        return mlp_of_arrays(arrays).to(self._device)

    @property
    def has_unembedding(self) -> bool:
        """Whether the final norm's gain and the unembedding are stored."""
        return any(name.startswith(UNEMBEDDING) for name in self._names)

    def unembedding(self) -> Unembedding:
        """The final norm's gain and the unembedding. They are large, so every call reads them. Raises DamagedError."""
        arrays = {name: self._array(name) for name in self._names if name.startswith(UNEMBEDDING)}
        return unembedding_of_arrays(arrays, origin=f"{self.identity.get('model')}, as the cache stores it in bfloat16")

    @property
    def _names(self) -> list[str]:
        paths = [path.removeprefix(PARAMETERS) for path in self.manifest.files if path.startswith(PARAMETERS)]
        return sorted({path.split("/")[0] for path in paths} - {"zarr.json"})

    def _array(self, name: str) -> np.ndarray:
        folder = PARAMETERS + name
        described = self.bound(f"{folder}/zarr.json")
        chunks = [path for path in self.manifest.files if path.startswith(f"{folder}/c.")]
        try:
            return read_parameter(described, b"".join(map(self.bound, chunks)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"A small array cannot be read ({error}).", where=self.path / folder) from None

    def bound(self, path: str) -> bytes:
        """The bytes of a file that the manifest lists. Raises DamagedError when they are others."""
        return read_bound(self.path, path, self.manifest.files[path])
