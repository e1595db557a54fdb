"""LoPA as an algorithm of SGLang for diffusion language models."""

from typing import Any

import torch
from torch import Tensor

from triselect.engines.lopa_round import next_round, settings


class SGLangLoPA:
    """What SGLang's ``DllmAlgorithm`` asks of an algorithm: ``step``.

    Parameters
    ----------
    config : DllmConfig
        Of it `block_size`, `mask_id`, and `algorithm_config`, in which `num_lookaheads` (0 unless
        given), `threshold` (0.95, as SGLang's), `factor`, `score`, `branch_score`, `lowest` and
        `confirm` mean what they do in `triselect.lopa.Config`; `block_size` there is SGLang's own.

    Raises
    ------
    TypeError, ValueError
        An option that there is not, or out of range, by name; one of `branch_score` that goes by
        how sure a lookahead's own token was; a model without a mask token.

    Notes
    -----
    ``DllmAlgorithm`` (``python/sglang/srt/dllm/algorithm/base.py``, since pull request 27551) runs
    a forward pass and a step in turn, for a batch of blocks or, with ``--dllm-fdfo``, one step for
    whatever blocks there are. An algorithm is found by the ``Algorithm`` of a module in that
    folder, so there goes a file ``lopa.py``::

        from sglang.srt.dllm.algorithm.base import DllmAlgorithm
        from triselect.engines import SGLangLoPA

        class LoPA(SGLangLoPA, DllmAlgorithm):
            def __init__(self, config):
                DllmAlgorithm.__init__(self, config)
                SGLangLoPA.__init__(self, config)

        Algorithm = LoPA

    and ``--dllm-algorithm LoPA``. SGLang reports whatever ``__init__`` raises as an unknown
    algorithm, with the reason further up.

    SGLang forwards one row for each request, in which a row can be one branch only:
    ``num_lookaheads=0``, threshold decoding with a fallback, is all it can do as it is. For k
    lookaheads the engine must place each block in k + 1 rows, side by side and all equal at first,
    with room of their own in the cache behind a shared prefix, and move them together. Rows that
    cannot be one request's are refused; fresh blocks of different requests look the same, and are
    not. Tokens are then those of `triselect.lopa.generate` with ``open_blocks=1``,
    ``add_threshold=1`` and block-causal attention, in one forward pass more per block: SGLang's
    last one, which leaves keys and values of the finished block in all rows.

    Always the most probable token, whatever the request's sampling parameters; no models with
    shifted logits, as no row of a block predicts its first position; ends of text are looked for by
    the engine, in finished blocks.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> options = {"num_lookaheads": 1}
    >>> config = SimpleNamespace(block_size=2, mask_id=4, algorithm_config=options)
    >>> batch = SimpleNamespace(input_ids=torch.tensor([4, 4, 4, 4]), batch_size=2)
    >>> logits = torch.tensor([[2.0, 0, 0, 0, 9], [0, 1.0, 0, 0, 0]]).repeat(2, 1)
    >>> SGLangLoPA(config).step(batch, logits, [None, None])
    [False, False]
    >>> batch.input_ids  # the anchor has its best token; the lookahead may not fill the last one
    tensor([0, 4, 0, 4])
    """

    def __init__(self, config: Any) -> None:
        options = dict(config.algorithm_config)
        options.pop("block_size", None)
        self.lopa = settings(config.block_size, **options)
        if config.mask_id < 0:  # SGLang's sign for models that start from random tokens
            raise ValueError(
                f"mask_id must be the token of a position to fill, got {config.mask_id}"
            )
        self.block_size = config.block_size
        self.mask_id = config.mask_id

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        """Write what the next forward pass is to read into ``forward_batch.input_ids``.

        ``input_ids (rows * block_size,)`` integers, ``full_logits (rows * block_size, V)`` in the
        same order. Returns of each row whether its block was finished on entry, so that the pass
        before left its keys and values. `states` stay as they are: the rows are all there is to
        know.
        """
        ids = forward_batch.input_ids.view(-1, self.block_size)
        logits = full_logits.view(*ids.shape, -1)
        after = next_round(ids, logits, self.lopa, self.mask_id, blocks_to_come=True)
        finished = (ids != self.mask_id).all(-1)
        fits = after.are_branches.repeat_interleave(int(self.lopa.num_lookaheads) + 1)
        # The one look at the device, which SGLang's loop takes anyway.
        done, all_fit = torch.stack([finished, fits]).tolist()
        if not all(all_fit):
            raise ValueError(
                f"forward_batch.input_ids must hold each block in num_lookaheads + 1 = "
                f"{int(self.lopa.num_lookaheads) + 1} rows side by side, equal but for one "
                f"token; rows {[i for i, fit in enumerate(all_fit) if not fit]} are not"
            )
        forward_batch.input_ids.copy_(after.tokens.flatten())  # in place: a CUDA graph reads it
        found: list[bool] = done
        return found
