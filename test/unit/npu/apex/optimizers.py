"""apex.optimizers, as far as tests need it."""
from _fused_adamw import FusedAdamW as NpuFusedAdamW  # noqa: F401
