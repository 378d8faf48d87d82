"""Names what one can choose when folders are branched or merged, so that a parser knows it without torch."""

from typing import Literal

RouterInit = Literal["normal", "domain", "hidden", "zero"]
"""How the router's rows start (router_start.py)."""
Method = Literal["mean", "weighted", "task-arithmetic", "ties", "dare", "first"]
"""How the tensors that all experts share become one (shared.py)."""
