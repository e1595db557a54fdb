"""Hooks for serving engines, which need not be installed here."""

from triselect.engines.routing import sglang_routing, vllm_routing

__all__ = ["sglang_routing", "vllm_routing"]
