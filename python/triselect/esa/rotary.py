"""`Rotary`: the rotation by which a model tells positions apart."""

import torch
from torch import Tensor


class Rotary:
    """Rotary position embedding, pairs ``(i, i + D / 2)`` of a head, as in Llama.

    Parameters
    ----------
    inv_freq : ``(D / 2,)`` floating point
        The angle of each pair at position 1.
    scaling : float
        What rotated queries and keys are multiplied with (YaRN's attention factor).

    Examples
    --------
    >>> rotary = Rotary(torch.tensor([torch.pi / 2]))
    >>> rotary.rotate(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([1])).round().flatten()
    tensor([-0., 1.])
    """

    def __init__(self, inv_freq: Tensor, scaling: float = 1.0) -> None:
        if not isinstance(inv_freq, Tensor) or inv_freq.dim() != 1:
            raise ValueError("inv_freq must be a tensor (dim / 2,)")
        self.inv_freq, self.scaling = inv_freq.float(), float(scaling)
        self._table = self._cos_sin(torch.arange(0, device=inv_freq.device))

    @classmethod
    def of(cls, head_dim: int, base: float = 10000.0) -> "Rotary":
        """The usual one: ``base ** (-2 i / head_dim)``."""
        return cls(base ** -(torch.arange(0, head_dim, 2) / head_dim))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x (B, C, H, D)`` at ``positions (C,)`` or ``(B, C)``, in float32, of x's dtype."""
        cos, sin = (part.unsqueeze(-2) for part in self._cos_sin(positions))
        first, second = x.float().chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)

    def table(self, places: int) -> tuple[Tensor, Tensor]:
        """cos and sin ``(places, D / 2) float32`` of the first positions, computed once."""
        if len(self._table[0]) < places:
            self._table = self._cos_sin(torch.arange(places, device=self.inv_freq.device))
        cos, sin = self._table
        return cos[:places], sin[:places]

    def to(self, device: torch.device) -> "Rotary":
        return (
            self
            if self.inv_freq.device == device
            else Rotary(self.inv_freq.to(device), self.scaling)
        )

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self.inv_freq
        return angles.cos() * self.scaling, angles.sin() * self.scaling
