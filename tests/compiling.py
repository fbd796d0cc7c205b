"""How tests are compiled: quickly, but for what runs long or is close to its tolerance."""

import jax

# Code that runs once needs no optimising: half of the suite's time. Newer versions of XLA do not know the second flag.
QUICK = ["--xla_backend_optimization_level=0"]
AS_USERS_HAVE_IT: dict[str, int | bool] = {"xla_backend_optimization_level": 3}  # for jax.jit's compiler_options
if jax.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
    AS_USERS_HAVE_IT["xla_cpu_use_fusion_emitters"] = True
