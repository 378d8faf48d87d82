"""Where the router sends tokens: token by token, domain by domain, and how many experts a layer needs."""

import megatron_bar.parallel  # noqa: F401  (adapts Megatron-Core to a CPU before anything here imports it)
