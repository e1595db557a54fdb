"""`generate`: prompts in, texts out."""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.lopa.config import Config
from triselect.lopa.decoder import Decoder
from triselect.lopa.denoiser import Denoiser
from triselect.lopa.metrics import History, Metrics, measure
from triselect.lopa.state import State
from triselect.lopa.width import free_lookaheads, useful_lookaheads


class Generation(NamedTuple):
    """`tokens`: of each sequence its new ones, 1-D int64, with the end-of-text token if it came."""

    tokens: list[Tensor]
    metrics: Metrics
    history: History
    state: State


@torch.inference_mode()
def generate(
    model: Denoiser,
    input_ids: Tensor | list[Tensor],
    config: Config | None = None,
    *,
    attention_mask: Tensor | None = None,
    seed: int | Tensor = 0,
    streamer: Any = None,
    stop_strings: str | list[str] | None = None,
    tokenizer: Any = None,
    max_rounds: int | None = None,
    state: State | None = None,
) -> Generation:
    """Fill in what follows each prompt, several tokens a round.

    Parameters
    ----------
    model : Denoiser
    input_ids : ``(B, P)`` integers, or a list of 1-D tensors of different lengths
    config : Config, optional
    attention_mask : ``(B, P)``, optional
        0 where `input_ids` is padding, on either side.
    seed : int or ``(B,)`` int64
        Of what is sampled, if a temperature is set: one for all sequences or one for each.
    streamer : optional
        As transformers': ``put(tokens)`` gets the prompt and then the tokens whose place in the
        text is settled, in order; ``end()`` is called at the end. For one sequence.
    stop_strings, tokenizer : optional
        End a sequence before the first of these strings; ``tokenizer.decode(tokens)`` makes text.
    max_rounds : int, optional
        Stop after so many rounds; ``Generation.state`` then goes on where this call left off.
    state : State, optional
        Go on from there instead of beginning with `input_ids`, which are then only needed by a
        streamer.

    Returns
    -------
    Generation

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; a model whose logits have another shape than asked
        for, or hold nothing but numbers that are not finite.

    Notes
    -----
    LoPA (arXiv 2512.16229) over D2F; not lossless: see `Config`. The device is looked at every
    ``config.look_every`` rounds, and otherwise runs ahead.

    Examples
    --------
    >>> import torch
    >>> from triselect import lopa
    >>> config = lopa.Config(length=8, block_length=4, num_lookaheads=2)
    >>> done = lopa.generate(lopa.ToyDenoiser(vocab_size=11), torch.tensor([[1, 2, 3]]), config)
    >>> len(done.tokens[0]), done.metrics.tokens
    (8, [8])
    """
    config = config or Config()
    decoder = Decoder(model, config)
    prompts = _prompts(input_ids, attention_mask)
    stops = [stop_strings] if isinstance(stop_strings, str) else stop_strings or []
    if stops and not hasattr(tokenizer, "decode"):
        raise ValueError("stop_strings need a tokenizer that decodes")
    if streamer is not None and len(prompts) != 1:
        raise ValueError(f"a streamer takes one sequence, got {len(prompts)}")

    begin = time.perf_counter()
    if state is None:
        state = decoder.begin(prompts, seed=seed)
    elif state.cache is None:
        state = decoder.resume(state)
    if streamer is not None:
        streamer.put(prompts[0].cpu())
    ends = Ends(decoder, stops, tokenizer)
    ends.look(state)
    first_seconds = time.perf_counter() - begin
    widths = list(state.widths)
    look_every = config.look_every or (1 if state.tokens.device.type == "cpu" else 8)
    left = config.length if max_rounds is None else max_rounds  # each round fills a token or more
    streamed = 0
    while True:
        if streamer is not None and ends.settled[0] > streamed:
            streamer.put(state.tokens[0, streamed : ends.settled[0]].long().cpu())
            streamed = ends.settled[0]
        if all(ends.ended) or not left:
            break
        if isinstance(config.num_lookaheads, int):
            count = config.num_lookaheads
        else:
            count = useful_lookaheads(decoder, state, free_lookaheads(decoder, state))
        rounds = min(look_every, left)
        for _ in range(rounds):
            state = decoder.step(state, count)
        widths += [count] * rounds
        left -= rounds
        ends.look(state)
    if streamer is not None:
        streamer.end()
    state = state._replace(widths=tuple(widths))
    seconds = time.perf_counter() - begin
    history = History(state.filled_at.cpu(), state.filled_by.cpu())
    tokens = [row[:n].long() for row, n in zip(state.tokens.cpu(), ends.settled, strict=True)]
    metrics = measure(history, ends.settled, widths, seconds, first_seconds)
    return Generation(tokens, metrics, history, state)


class Ends:
    """Where each sequence is settled up to, and which have come to their end."""

    def __init__(self, decoder: Decoder, stops: list[str], tokenizer: Any) -> None:
        self.decoder = decoder
        self.stops = stops
        self.tokenizer = tokenizer
        self.settled: list[int] = []
        self.ended: list[bool] = []

    def look(self, state: State) -> None:
        """Wait for the device, and look at what it has filled."""
        tokens = state.tokens.cpu()
        still_open = self.decoder.open(state).cpu()
        refuse_what_is_not_finite(state, still_open)
        before = self.settled or [0] * len(tokens)
        ended = self.ended or [False] * len(tokens)
        for b, row in enumerate(tokens):
            if ended[b]:
                continue
            is_end = (row == self.decoder.eos_token).nonzero()
            length = int(is_end[0]) + 1 if len(is_end) else len(row)
            masked = still_open[b].nonzero()
            upto = int(masked[0]) if len(masked) else length
            ended[b] = not len(masked)
            for n in range(before[b] + 1, upto + 1) if self.stops else ():
                text = self.tokenizer.decode(row[:n].tolist())
                if any(stop in text for stop in self.stops):
                    upto, ended[b] = n, True
                    break
            before[b] = upto
        self.settled, self.ended = before, ended


def refuse_what_is_not_finite(state: State, still_open: Tensor) -> None:
    predicted = still_open & (state.predicted.token >= 0).cpu()
    if predicted.any() and (state.predicted.score.cpu()[predicted] == -torch.inf).all():
        raise ValueError(
            "the model's logits are NaN or infinite at every position that is still to be filled"
        )


def _prompts(input_ids: Tensor | list[Tensor], attention_mask: Tensor | None) -> list[Tensor]:
    if not isinstance(input_ids, Tensor):
        if attention_mask is not None:
            raise ValueError("attention_mask belongs to input_ids (B, P), not to a list of prompts")
        return list(input_ids)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be (B, P), got {tuple(input_ids.shape)}")
    if attention_mask is None:
        return list(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {tuple(input_ids.shape)} as input_ids, "
            f"got {tuple(attention_mask.shape)}"
        )
    return [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
