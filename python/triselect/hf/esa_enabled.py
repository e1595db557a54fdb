"""`EsaEnabled`: what is changed in a model with ESA, and what happens around each of its calls."""

import inspect
from functools import partial
from types import TracebackType
from typing import Any

from triselect import esa
from triselect.hf import esa_models, esa_padding
from triselect.hf.esa_attention import MARK, NAME, Reading, Unrotated
from triselect.hf.esa_cache import EsaCache


class EsaEnabled:
    """What `enable_esa` changed. `undo` changes it back, and so does leaving a ``with``.

    ``layers`` are the names of the attention modules that ESA computes.
    """

    def __init__(
        self,
        config: esa.Config,
        compressors: list[esa.Compressor] | None,
        parts: esa_models.Parts,
        backend: str,
    ) -> None:
        self.config, self.compressors, self.layers = config, compressors, tuple(parts.attentions)
        self.backend = backend
        self.step: Reading | None = None  # while the model reads tokens
        self._parts = parts
        own: Any = parts.decoder.rotary_emb
        self._rotary = esa.Rotary(own.inv_freq, own.attention_scaling)
        self._arguments = list(inspect.signature(type(parts.decoder).forward).parameters)[1:]
        modules = (parts.decoder, *parts.attentions.values())
        configs = {id(module.config): module.config for module in modules}
        self._before = [(c, c._attn_implementation) for c in configs.values()]
        self._hooks: list[Any] = []

    @property
    def reading(self) -> EsaCache | None:
        """The cache that the model is using just now."""
        return None if self.step is None else self.step.cache

    def new_cache(
        self,
        capacity: int | None = None,
        *,
        page_size: int | None = None,
        offload: int | None = None,
    ) -> EsaCache:
        """An empty cache, to be passed to the model or its `generate` as `past_key_values`.

        Arguments are those of `esa.Cache`.
        """
        options = {"capacity": capacity, "page_size": page_size, "offload": offload}
        return EsaCache(esa.Cache(self.config, compressors=self.compressors, **options), self)

    def undo(self) -> None:
        """Restore what was before. A second call does nothing."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.step = [], None
        decoder = self._parts.decoder
        decoder.rotary_emb = decoder.rotary_emb.rotary
        for module in (decoder, *self._parts.attentions.values()):
            del vars(module)[MARK]
        for generator in self._parts.generators:
            del vars(generator)["_prepare_cache_for_generation"]
        for config, before in self._before:
            config._attn_implementation = {"": before}

    def begin(self) -> None:
        decoder = self._parts.decoder
        for config, _ in self._before:
            # A dict with this key sets it for this configuration alone, not for those within it.
            config._attn_implementation = {"": NAME}
        for module in (decoder, *self._parts.attentions.values()):
            vars(module)[MARK] = self
        for generator in self._parts.generators:
            generator._prepare_cache_for_generation = partial(self._prepare_cache, generator)
        decoder.rotary_emb = Unrotated(decoder.rotary_emb, decoder.config)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            decoder.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def _before_forward(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        self._drop_unfinished()
        given = dict(zip(self._arguments, args, strict=False)) | kwargs
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if tokens is None:  # the model says so
            return (), given
        batch, count = tokens.shape[:2]
        cache = given.get("past_key_values")
        if cache is None:
            keep = given.get("use_cache")
            if keep is None:
                keep = getattr(decoder.config, "use_cache", False)
            cache = self.new_cache(None if keep else max(1, count))
            if keep:
                given["past_key_values"] = cache
        self._must_be_ours(cache)
        before = cache.padding or [0] * batch
        if len(before) != batch:
            raise ValueError(f"past_key_values has {len(before)} rows, got a batch of {batch}")
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        padding = esa_padding.left_padding(mask, cache.columns, before, (batch, count))
        esa_padding.must_count_on(positions, cache.columns, before, padding, count)
        if self._rotary.inv_freq.device != tokens.device:
            self._rotary = self._rotary.to(tokens.device)
        self.step = Reading(cache, count, padding, self._rotary, self.backend)
        return (), given

    def _after_forward(self, decoder: Any, args: Any, kwargs: Any, result: Any) -> None:
        if result is None:  # something was raised
            self._drop_unfinished()
        elif self.step is not None:
            self.step.cache.advance(self.step.tokens, self.step.padding)
            self.step = None

    def _drop_unfinished(self) -> None:
        """Of a call that failed, or that was interrupted and had no time to say so."""
        if self.step is not None:
            self.step.cache.roll_back()
            self.step = None

    def _prepare_cache(
        self,
        generator: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """In place of the method of this name, which `generate` calls for its cache."""
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            self._must_be_ours(cache)
        elif generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "cache_implementation must not be given while ESA is enabled, which has its own "
                f"cache, got {generation_config.cache_implementation!r}"
            )
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache(max(1, max_cache_length))
            return
        its_own = type(generator)._prepare_cache_for_generation
        its_own(
            *(generator, generation_config, model_kwargs),
            *(generation_mode, batch_size, max_cache_length),
        )

    def _must_be_ours(self, cache: Any) -> None:
        if not isinstance(cache, EsaCache):
            raise ValueError(
                "past_key_values must be a cache of ESA while that is enabled: leave it out, or "
                f"pass what EsaEnabled.new_cache returns, got {type(cache).__name__}"
            )
        if cache.owner is not self:
            raise ValueError(
                "past_key_values is the cache of another model, or of this one before ESA was "
                "enabled anew: every EsaEnabled has caches of its own"
            )

    def __enter__(self) -> "EsaEnabled":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()
