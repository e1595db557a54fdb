"""Hooks for serving engines, which need not be installed here."""

from triselect.engines.diffusers_lopa import LoPAScheduler, LoPASchedulerOutput
from triselect.engines.routing import sglang_routing, vllm_routing
from triselect.engines.sglang_lopa import SGLangLoPA

__all__ = [
    "LoPAScheduler",
    "LoPASchedulerOutput",
    "SGLangLoPA",
    "sglang_routing",
    "vllm_routing",
]
