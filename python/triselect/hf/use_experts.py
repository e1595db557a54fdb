"""`use_experts`: a transformers model computes its mixtures of experts by triselect."""

from types import TracebackType
from typing import Any

from torch import nn

from triselect.hf import interface, routers
from triselect.ops import backends


def use_experts(model: nn.Module, *, backend: str = "auto") -> "ExpertsInUse":
    """Let a transformers model compute experts by `fused_moe`, and routers by `grouped_topk`.

    Parameters
    ----------
    model : nn.Module
        With experts that follow the experts interface of transformers 5 or later: gate_up_proj
        ``(E, 2 * I, H)``, down_proj ``(E, H, I)``, SiLU, no biases. Qwen3-MoE, DeepSeek-V3 and
        Mixtral are such models, and most others.
    backend : "auto", "native", "triton", "eager" or "reference"
        As in `fused_moe`.

    Returns
    -------
    ExpertsInUse
        What was changed; its `undo` changes it back.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        There are no experts, or some that `fused_moe` does not compute, or they are in use already.
        Nothing is changed.
    BackendUnavailable
        A named backend that cannot run here. Nothing is changed.

    Notes
    -----
    Experts are chosen in the model's configuration, under the name "triselect", as
    ``set_experts_implementation`` does: models that share one configuration object share the
    choice. A router that computes something else than `grouped_topk` remains the model's own
    (``ExpertsInUse.routers`` lists the others). Weights stay where they are; gradients,
    ``generate``, ``torch.compile`` and hooks work as before. Of equal router keys the lower index
    is taken, where transformers leaves that open; in 16 bits, equal keys are not rare.

    Examples
    --------
    >>> import torch
    >>> from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    >>> moe = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    >>> config = Qwen3MoeConfig(vocab_size=64, num_hidden_layers=1, head_dim=16, **sizes, **moe)
    >>> model = Qwen3MoeForCausalLM(config)
    >>> with use_experts(model) as in_use:
    ...     logits = model(torch.tensor([[1, 2, 3]])).logits
    >>> in_use.experts, in_use.routers
    (('model.layers.0.mlp.experts',), ('model.layers.0.mlp.gate',))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    backends.must_be_known(backend)
    experts = interface.find_experts(model)
    if not experts:
        raise ValueError(
            f"model must have experts that follow the experts interface of transformers, "
            f"{type(model).__name__} has none"
        )
    for name, module in experts.items():
        if reason := interface.why_not(module):
            raise ValueError(f"triselect cannot compute {name} ({type(module).__name__}): {reason}")
        backends.require(backend, module.down_proj.device)
        if module.config._experts_implementation in interface.NAMES.values():
            raise ValueError(f"triselect computes {name} already: undo that first")
    in_use = ExpertsInUse(experts, _routers_beside(experts, model))
    in_use._begin(backend)
    return in_use


class ExpertsInUse:
    """What `use_experts` changed. `undo` changes it back, and so does leaving a ``with``.

    ``experts`` and ``routers`` are the names of the modules that triselect computes.
    """

    def __init__(
        self, experts: dict[str, Any], found: dict[str, tuple[Any, routers.Match]]
    ) -> None:
        self.experts, self.routers = tuple(experts), tuple(found)
        configs = {id(module.config): module.config for module in experts.values()}
        self._before = [(c, c._experts_implementation) for c in configs.values()]
        self._found = list(found.values())

    def _begin(self, backend: str) -> None:
        for config, _ in self._before:
            # A dict with this key sets it for this configuration alone, not for those within it.
            config._experts_implementation = {"": interface.NAMES[backend]}
        for router, match in self._found:
            routers.replace(router, match, backend)

    def undo(self) -> None:
        """Restore what was before. A second call does nothing."""
        for config, before in self._before:
            config._experts_implementation = {"": before}
        for router, _ in self._found:
            vars(router).pop("forward", None)
        self._before, self._found = [], []

    def __enter__(self) -> "ExpertsInUse":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def _routers_beside(
    experts: dict[str, Any], model: nn.Module
) -> dict[str, tuple[nn.Module, routers.Match]]:
    """Routers that `grouped_topk` computes, by name, in the blocks that hold these experts."""
    known: dict[Any, routers.Match | None] = {}  # layers have the same router, mostly
    found = {}
    for name, module in experts.items():
        block = name.rpartition(".")[0]
        count = module.down_proj.shape[0]
        for child, router in routers.find_routers(model.get_submodule(block), count):
            key = routers.kind(router)
            if key not in known:
                known[key] = routers.match(router)
            if match := known[key]:
                found[f"{block}.{child}" if block else child] = router, match
    return found
