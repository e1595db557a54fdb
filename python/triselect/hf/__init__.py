"""Adapters to Hugging Face transformers, 5 or later: models run on triselect's operators."""

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "triselect.hf needs transformers, 5 or later: pip install 'triselect[hf]'"
    ) from error
if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(
        f"triselect.hf needs transformers 5 or later, this is {transformers.__version__}: "
        "pip install 'triselect[hf]'"
    )

from triselect.hf.as_denoiser import as_denoiser
from triselect.hf.denoiser import TransformersDenoiser
from triselect.hf.diffusion_config import dream_config, llada_config
from triselect.hf.enable_esa import disable_esa, enable_esa
from triselect.hf.esa_cache import EsaCache
from triselect.hf.esa_enabled import EsaEnabled
from triselect.hf.load_diffusion import load_diffusion
from triselect.hf.use_experts import ExpertsInUse, use_experts

__all__ = [
    "EsaCache",
    "EsaEnabled",
    "ExpertsInUse",
    "TransformersDenoiser",
    "as_denoiser",
    "disable_esa",
    "dream_config",
    "enable_esa",
    "llada_config",
    "load_diffusion",
    "use_experts",
]
