"""`Decoder`: a round of LoPA over any model, as a function of the state."""

import torch
from torch import Tensor

from triselect.lopa.config import Config
from triselect.lopa.confirm import keep_confirmed
from triselect.lopa.denoiser import Denoiser
from triselect.lopa.sampling import keep_likely
from triselect.lopa.state import State
from triselect.lopa.uncached import logits_of_all
from triselect.ops import Branches, Committed, Confidence, commit, spawn, token_confidence


class Decoder:
    """A model and how to decode it; every run is a `State` of its own.

    A round is three operators around the model, all on the device: `spawn`, the model,
    `token_confidence`, `commit`.

    >>> import torch
    >>> from triselect import lopa
    >>> config = lopa.Config(length=8, block_length=4)
    >>> decoder = lopa.Decoder(lopa.ToyDenoiser(vocab_size=11), config)
    >>> state = decoder.begin([torch.tensor([1, 2, 3])])
    >>> while not decoder.done(state).all():
    ...     state = decoder.step(state, num_lookaheads=2)
    """

    def __init__(self, model: Denoiser, config: Config) -> None:
        for name in (
            "mask_token",
            "eos_token",
            "shift",
            "max_length",
            "device",
            "new_cache",
            "prefill",
        ):
            if not hasattr(model, name):
                raise TypeError(f"model must have {name}, see triselect.lopa.Denoiser")
        mask = model.mask_token
        if isinstance(mask, bool) or not isinstance(mask, int) or mask < 0:
            raise ValueError(f"model must have a mask token, got mask_token = {mask!r}")
        if mask == model.eos_token:
            raise ValueError(f"model's mask_token and eos_token must differ, both are {mask}")
        self.model = model
        self.config = config
        self.eos_token = -1 if model.eos_token is None else model.eos_token

    def begin(self, prompts: list[Tensor], *, seed: int | Tensor = 0) -> State:
        """The state before the first round: prompts read, the first block predicted.

        `prompts` are 1-D and may differ in length. `seed` is one for all or one for each; it
        matters only where tokens are sampled.
        """
        model, config = self.model, self.config
        if not prompts:
            raise ValueError("prompts must hold at least one prompt")
        for prompt in prompts:
            if prompt.dim() != 1 or prompt.is_floating_point() or prompt.is_complex():
                raise ValueError(
                    f"a prompt must be (tokens,) integers, got {tuple(prompt.shape)} {prompt.dtype}"
                )
            if model.shift and not len(prompt):
                raise ValueError(
                    "a prompt must have a token: the model predicts the token after one it has seen"
                )
            if len(prompt) + config.length > model.max_length:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens and {config.length} to generate are more "
                    f"than the {model.max_length} positions of the model"
                )
        device = model.device
        batch, longest = len(prompts), max(map(len, prompts))
        prompt = torch.full((batch, longest), model.mask_token, dtype=torch.int32)
        for row, given in zip(prompt, prompts, strict=True):
            row[: len(given)] = given
        lengths = torch.tensor([len(p) for p in prompts], dtype=torch.int32)

        def full(value: float, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        shape = (batch, config.length)
        state = State(
            prompt=prompt.to(device),
            prompt_length=lengths.to(device),
            tokens=full(model.mask_token, *shape),
            predicted=Confidence(
                full(-1, *shape),
                full(0, *shape, dtype=torch.float32),
                full(-torch.inf, *shape, dtype=torch.float32),
            ),
            filled_at=full(0, *shape),
            filled_by=full(-1, *shape),
            added=full(min(1, config.length), batch),
            start=full(0, batch),
            step=full(0, batch),
            seed=torch.as_tensor(seed, dtype=torch.int64, device=device).expand(batch).contiguous(),
        )
        if not config.length:
            return state
        state, logits = self._read_prompts(state)
        branches = self._spawn(state, 0)
        if self._shift:  # the first position is predicted by the prompt's last
            first = self._confidence(logits, None, state)
            for of_all, of_first in zip(state.predicted, first, strict=True):
                of_all[:, 0] = of_first
        return self._after_model(state, branches)

    def step(self, state: State, num_lookaheads: int | None = None) -> State:
        """One round: fill what is sure, look ahead, keep the best branch.

        Nothing waits for the device. Sequences that are done stay as they are.
        """
        if num_lookaheads is None:
            if self.config.num_lookaheads == "auto":
                raise ValueError('num_lookaheads is "auto": say how many for this round')
            num_lookaheads = int(self.config.num_lookaheads)
        branches = self._spawn(state, num_lookaheads)
        return self._after_model(state._replace(step=state.step + 1), branches)

    def done(self, state: State) -> Tensor:
        """``(B,)`` bool: whether all before the end of text is filled."""
        return ~self.open(state).any(-1)

    def open(self, state: State) -> Tensor:
        """``(B, G)`` bool: positions yet to be filled, none of them behind the end of text."""
        ended = (state.tokens == self.eos_token).cumsum(-1) > 0
        return (state.tokens == self.model.mask_token) & ~ended

    def resume(self, state: State) -> State:
        """The state with a cache again, after `State.load`."""
        if not self.config.cache or not self.config.length:
            return state
        state, _ = self._read_prompts(state)
        # Frozen blocks see themselves and what is before them, whenever they are read.
        level = torch.arange(self.config.length, device=state.tokens.device)
        level = (level // self.config.block_length + 1).int().expand_as(state.tokens)
        self.model(state.tokens[:, None], state.prompt_length, level.contiguous(), state.cache)
        return state

    def _read_prompts(self, state: State) -> tuple[State, Tensor]:
        """With a cache, if there is to be one, and the logits ``(B, V)`` behind the prompts."""
        batch, longest = state.prompt.shape
        if self.config.cache:
            cache = self.model.new_cache(batch, longest + self.config.length)
            state = state._replace(cache=cache)
        logits = state.tokens.new_zeros(0)
        if longest and (self.config.cache or self._shift):
            logits = self.model.prefill(state.prompt, state.prompt_length, state.cache)
        return state, logits

    def _spawn(self, state: State, num_lookaheads: int) -> Branches:
        config = self.config
        return spawn(
            state.tokens,
            state.predicted,
            state.added,
            state.start,
            block_length=config.block_length,
            window=config.window,
            num_lookaheads=num_lookaheads,
            mask_token=self.model.mask_token,
            eos_token=self.eos_token,
            threshold=config.threshold,
            factor=config.factor or 0.0,
            add_at=config.add_at,
            activate_at=config.activate_at,
            attention=config.attention,
            shift=self._shift,
        )

    @property
    def _shift(self) -> bool:
        """Whether row i of a window predicts position i + 1 of it. Where nothing is frozen, the
        rows are taken one position earlier instead.
        """
        return self.model.shift and self.config.attention != "bidirectional"

    def _after_model(self, state: State, branches: Branches) -> State:
        new = self._confidence(self._logits(state, branches), branches.asked, state)
        if self.config.compatibility:
            new = Confidence(new.token, *(x.bfloat16().float() for x in new[1:]))
        committed = self._commit(state, branches, new)
        return state._replace(
            tokens=committed.tokens,
            predicted=committed.predicted,
            filled_at=committed.filled_at,
            filled_by=committed.filled_by,
            added=branches.added,
            start=branches.start,
        )

    def _commit(self, state: State, branches: Branches, new: Confidence) -> Committed:
        config = self.config
        new = Confidence(*(x.view(branches.open.shape) for x in new))
        if config.confirm is not None:
            branches = keep_confirmed(
                branches, new, state.predicted, state.start, config.confirm, self._shift
            )
        rule, worth = "mean", None
        if isinstance(config.branch_score, str):
            rule = config.branch_score
        else:
            worth = config.branch_score(branches, new)
        return commit(
            state.tokens,
            state.predicted,
            state.filled_at,
            state.filled_by,
            state.step,
            state.start,
            branches,
            new,
            rule=rule,
            ratio=config.lowest,
            threshold=config.threshold,
            worth=worth,
            shift=self._shift,
            released=config.compatibility == "released",
        )

    def _confidence(self, logits: Tensor, asked: Tensor | None, state: State) -> Confidence:
        """Of ``(B, R, W, V)`` or ``(B, V)``, one number each per row."""
        config = self.config
        temperature = config.temperature or 1.0
        draw: dict[str, Tensor] = {}
        if config.temperature:
            rows = logits.shape[:-1]
            position = torch.zeros((1,) * len(rows), dtype=torch.int64, device=logits.device)
            if asked is not None:
                here = torch.arange(rows[-1], device=logits.device)
                position = state.start[:, None, None] + here + self._shift
            ones = (1,) * (len(rows) - 1)
            draw = {
                "seed": state.seed.view(-1, *ones).expand(rows).flatten(),
                "position": position.expand(rows).flatten(),
                "step": state.step.long().view(-1, *ones).expand(rows).flatten(),
            }
            if config.top_k or config.top_p:
                logits = keep_likely(
                    logits, self.model.mask_token, temperature, config.top_k, config.top_p
                )
        return token_confidence(
            logits.flatten(0, -2),
            score=config.score,
            temperature=temperature,
            mask_token=self.model.mask_token,
            rows=None if asked is None else asked.flatten(),
            **draw,  # type: ignore[arg-type]
        )

    def _logits(self, state: State, branches: Branches) -> Tensor:
        """``(B, k + 1, W, V)``, of the rows that predict the window."""
        if self.config.cache:
            start = state.prompt_length + state.start
            logits = self.model(branches.tokens, start, branches.level, state.cache)
        else:
            logits = logits_of_all(self.model, self.config, state, branches, self._shift)
        if logits.dim() != 4 or logits.shape[:3] != branches.tokens.shape:
            raise ValueError(
                f"the model must return logits {(*branches.tokens.shape, 'vocabulary')}, "
                f"got {tuple(logits.shape)}"
            )
        return logits
