"""What a model predicts for a window when it reads everything anew, prompts included."""

import torch
from torch import Tensor

from triselect.lopa.config import Config
from triselect.lopa.denoiser import Denoiser
from triselect.lopa.state import State
from triselect.ops import Branches
from triselect.ops.spawn import FAR


def logits_of_all(
    model: Denoiser, config: Config, state: State, branches: Branches, shift: bool
) -> Tensor:
    """``(B, R, W, V)``: the rows of the window, or where the model predicts the next position and
    no `shift` is to follow, the rows one earlier.
    """
    batch, rows, window = branches.tokens.shape
    longest, length = state.prompt.shape[1], config.length
    here = state.start[:, None] + torch.arange(window, device=state.start.device)

    # Prompts, all that is generated, and room for the window behind it.
    tokens = state.tokens.new_full((batch, rows, longest + length + window), model.mask_token)
    tokens[..., :longest] = state.prompt[:, None]
    tokens[..., longest : longest + length] = state.tokens[:, None]
    at = (longest + here)[:, None].expand(-1, rows, -1)
    tokens.scatter_(2, at, branches.tokens)
    level = branches.level.new_full((batch, longest + length + window), FAR)
    level[:, :longest] = 0
    block = torch.arange(length, device=level.device, dtype=torch.int32) // config.block_length
    is_frozen = block < state.start[:, None] // config.block_length
    level[:, longest : longest + length] = (block + 1).where(is_frozen, FAR)
    level.scatter_(1, longest + here, branches.level)

    # What is generated follows a shorter prompt at once.
    place = torch.arange(longest + length, device=level.device).expand(batch, -1)
    behind = place - state.prompt_length[:, None]
    source = place.where(behind < 0, (longest + behind).clamp_max(tokens.shape[2] - 1))
    tokens = tokens.take_along_dim(source[:, None], 2)
    level = level.take_along_dim(source, 1)
    logits = model(tokens, torch.zeros_like(state.start), level, None)

    back = int(model.shift and not shift)
    row = (state.prompt_length[:, None] + here - back).clamp_max(longest + length - 1)
    return logits.take_along_dim(row[:, None, :, None].long(), 2)
