"""LoPA as a scheduler of diffusers for discrete diffusion."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.engines.lopa_round import next_round, settings

# What LLaDA2Pipeline passes to every scheduler and has no say here: nothing is drawn or edited.
WITHOUT_SAY = ("top_p", "top_k", "sampling_method", "minimal_topk", "prompt_mask")


class LoPASchedulerOutput(NamedTuple):
    """`prev_sample` ``(B * (k + 1), W)``: what the model is to read next. `transfer_index` bool:
    where it differs from the sample. `editing_transfer_index` bool: nowhere. `sampled_tokens` int64
    and `sampled_probs` float32: what was predicted for open positions; -1 and 0 elsewhere.
    """

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor


class LoPAScheduler:
    """A scheduler whose sample holds each sequence in k + 1 rows: the anchor and k lookaheads.

    Parameters
    ----------
    block_length : int
        Blocks of the sample are filled one after the other. A pipeline takes it for its own.
    num_inference_steps : int
        The most steps of a pipeline for a block; `block_length` of them always suffice.
    num_lookaheads : int
        k; 0 is threshold decoding.
    mask_token_id : int, optional
        If a pipeline does not pass it to every step.
    **options
        `threshold` (0.95, as diffusers'), `factor`, `score`, `branch_score`, `lowest` and
        `confirm`, as in `triselect.lopa.Config`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit, by name; one of `branch_score` that goes by how sure a
        lookahead's own token was.

    Notes
    -----
    Made like ``BlockRefinementScheduler`` (``src/diffusers/schedulers/
    scheduling_block_refinement.py``, 0.39 and 0.40), in place of which it goes into
    ``LLaDA2Pipeline(model, scheduler, tokenizer)``. There each prompt must come in k + 1 copies
    side by side, of whose texts the first is the one; temperature must be 0,
    ``editing_threshold=None``, and the pipeline's own threshold counts. The config is no
    ``ConfigMixin``'s: a pipeline with it cannot be saved. ``DiffusionGemmaPipeline`` has no mask
    token, and nothing for it to fill.

    It depends on no timestep: each step fills what is sure. Tokens are those of
    `triselect.lopa.generate` called block by block with ``length=block_length``, or, where the
    sample is longer than a block, once with ``attention="bidirectional"`` and ``add_threshold=1``.

    Examples
    --------
    >>> scheduler = LoPAScheduler(block_length=3, num_lookaheads=1, mask_token_id=4)
    >>> sample = torch.full((2, 3), 4)
    >>> logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 2.0, 0, 0]])
    >>> scheduler.step(logits.expand(2, 3, 5), 0, sample).prev_sample
    tensor([[0, 4, 4],
            [0, 4, 2]])
    """

    order = 1

    def __init__(
        self,
        block_length: int = 32,
        num_inference_steps: int = 32,
        *,
        num_lookaheads: int = 3,
        mask_token_id: int | None = None,
        **options: Any,
    ) -> None:
        self.lopa = settings(block_length, num_lookaheads=num_lookaheads, **options)
        self.config = SimpleNamespace(
            block_length=block_length,
            num_inference_steps=num_inference_steps,
            num_lookaheads=num_lookaheads,
            mask_token_id=mask_token_id,
            **{"threshold": self.lopa.threshold} | options,
        )
        self.set_timesteps(num_inference_steps)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        block_length: int | None = None,
    ) -> None:
        """Make `timesteps` count down to 0, and `block_length`, if given, count from now on."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)
        if block_length is not None:
            self.lopa = replace(self.lopa, length=block_length, block_length=block_length)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        threshold: float | None = None,
        temperature: float = 0.0,
        editing_threshold: float | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **without_say: Any,
    ) -> LoPASchedulerOutput | tuple[Tensor, ...]:
        """Keep the best row of each sequence, fill what is sure in it, and look ahead anew.

        ``model_output (B * (k + 1), W, V)`` float32, float16 or bfloat16, ``sample (B * (k + 1),
        W)`` integers, W a multiple of the block length; `mask_token_id` and `threshold` instead of
        the config's. Nothing waits for the device. Where all is filled, the rows are equal. On the
        CPU rows that are not one sequence's are refused.
        """
        for name in without_say:
            if name not in WITHOUT_SAY:
                raise TypeError(f"step got an unexpected argument {name!r}")
        if temperature:
            raise ValueError(f"temperature must be 0, nothing is drawn here, got {temperature}")
        if editing_threshold is not None and editing_threshold > 0:
            raise ValueError(
                f"editing_threshold must be None, nothing is edited here, got {editing_threshold}"
            )
        mask = self.config.mask_token_id if mask_token_id is None else mask_token_id
        if mask is None:
            raise ValueError("mask_token_id must be given, to the scheduler or to step")
        config = self.lopa if threshold is None else replace(self.lopa, threshold=threshold)
        after = next_round(sample, model_output, config, mask, blocks_to_come=False)
        if sample.device.type == "cpu" and not after.are_branches.all():
            raise ValueError(
                f"sample must hold each sequence in num_lookaheads + 1 = "
                f"{int(config.num_lookaheads) + 1} rows side by side, equal but for one token"
            )
        changed = after.tokens != sample
        found = LoPASchedulerOutput(
            after.tokens,
            changed,
            torch.zeros_like(changed),
            after.new.token.long(),
            after.new.prob,
        )
        return found if return_dict else tuple(found)

    def check_eos_finished(
        self,
        *,
        cur_x: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
        **of_this_step: Any,
    ) -> Tensor:
        """``(B * (k + 1),)`` bool: rows whose anchor has an end of text and nothing open before."""
        rows = int(self.lopa.num_lookaheads) + 1
        text = cur_x[::rows, prompt_length:]
        settled = (text == mask_token_id).cumsum(-1) == 0
        ended = ((text == eos_token_id) & settled).any(-1)
        return finished | ended.repeat_interleave(rows)

    def check_block_should_continue(
        self, *, step_idx: int, masks_remaining: bool | Tensor, finished: Tensor, **of_editing: Any
    ) -> bool:
        """Whether a pipeline is to go on with a block: it looks at the device, as theirs does."""
        left = step_idx < self.num_inference_steps
        return left and bool(masks_remaining) and not bool(finished.all())
