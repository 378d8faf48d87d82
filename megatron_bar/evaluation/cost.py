"""What updating one domain costs, modularly and by retraining, from the ledgers that manifests keep.

Modularly, a domain costs its own expert's stages and the router's; the merge trains nothing. Retraining costs
what a monolithic baseline took beyond the start that both share; without such a folder, the stages of all
domains. Where domains are added one by one, the modular cost is a sum of prices and the other a sum of sums:
linear against quadratic (arXiv 2604.18473).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.cli import aligned
from megatron_bar.errors import BarError
from megatron_bar.weights.manifest import MANIFEST, Cost, read_manifest


@dataclass(frozen=True, kw_only=True)
class Price:
    tokens: float
    flops: float
    device_seconds: float
    """Seconds times devices."""

    def __add__(self, other: "Price") -> "Price":
        return Price(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def __mul__(self, factor: float) -> "Price":
        return Price(**{name: value * factor for name, value in vars(self).items()})


NOTHING = Price(tokens=0, flops=0.0, device_seconds=0.0)


def price(costs: Sequence[Cost]) -> Price:
    """Returns the sum of ``costs``; its tokens are those trained on and those sampled."""
    total = NOTHING
    for cost in costs:
        tokens = cost.tokens + cost.generated
        total += Price(tokens=tokens, flops=cost.flops, device_seconds=cost.seconds * cost.devices)
    return total


@dataclass(frozen=True, kw_only=True)
class Bill:
    """A merged model's ledger by what was paid for."""

    start: tuple[Cost, ...]
    """Stages of the dense models."""
    experts: dict[str, tuple[Cost, ...]]
    """Stages of each expert, in slot order."""
    router: tuple[Cost, ...]
    """Stages of the router, one for every time that the set of experts changed."""

    @property
    def routing(self) -> Price:
        """Price of the router's last stage; nothing where it was not trained yet."""
        return price(self.router[-1:])

    def update(self, name: str) -> Price:
        """Returns the price of updating this one domain."""
        return price(self.experts[name]) + self.routing

    @property
    def all_domains(self) -> Price:
        return price([cost for costs in self.experts.values() for cost in costs])

    @property
    def entries(self) -> list[Cost]:
        """Every entry of the ledger: the start's, each expert's, the router's."""
        return [cost for costs in (self.start, *self.experts.values(), self.router) for cost in costs]


def read_ledger(folder: Path) -> tuple[Cost, ...]:
    if not folder.is_dir():
        raise BarError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'none'}")
    ledger = read_manifest(folder).ledger
    if not ledger:
        raise BarError(f"{folder / MANIFEST}: ledger expected with an entry for every stage, got none")
    return ledger


def read_bill(folder: Path) -> Bill:
    """Reads the bill of a merged model, its router trained or not."""
    ledger = read_ledger(folder)
    manifest = read_manifest(folder)
    if manifest.kind not in ("merged", "routed"):
        raise BarError(f"{folder}: expected a merged model, got kind {manifest.kind!r}")
    experts = {e.name: tuple(cost for cost in ledger if cost.expert == e.name) for e in manifest.experts[1:]}
    if unpaid := [name for name, costs in experts.items() if not costs]:
        raise BarError(
            f"{folder / MANIFEST}: ledger expected with the stages of expert {unpaid[0]!r}, got none"
        )
    first = next(n for n, cost in enumerate(ledger) if cost.expert is not None)
    shared = [cost.expert is None for cost in ledger]
    router = tuple(cost for n, cost in enumerate(ledger) if shared[n] and n > first)
    return Bill(start=ledger[:first], experts=experts, router=router)


def retraining(bill: Bill, monolithic: Sequence[Cost] | None) -> Price:
    """Returns the price of training everything at once; ``monolithic``: the ledger of a model trained on all
    domains, None: what the experts took."""
    if monolithic is None:
        return bill.all_domains
    return price([cost for cost in monolithic if cost not in bill.start])


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What ``domains`` added one by one have cost in all."""

    domains: int
    modular: Price
    retrained: Price
    extrapolated: bool
    """Whether these are more domains than the run had; each other one counts at the mean price of its own."""


def growth(bill: Bill, monolithic: Sequence[Cost] | None, domains: int) -> list[Growth]:
    """Returns the costs for 1 to ``domains``. The router costs every time what it cost in this run; a
    monolithic model costs in proportion to the number of its domains."""
    own = [price(costs) for costs in bill.experts.values()]
    whole = retraining(bill, monolithic)
    mean = bill.all_domains * (1 / len(own))
    rows = []
    modular = NOTHING
    retrained = NOTHING
    known = NOTHING
    for n in range(1, domains + 1):
        domain = own[n - 1] if n <= len(own) else mean
        known += domain
        modular += domain + bill.routing
        retrained += known if monolithic is None else whole * (n / len(own))
        rows.append(Growth(domains=n, modular=modular, retrained=retrained, extrapolated=n > len(own)))
    return rows


def as_json(bill: Bill, monolithic: Sequence[Cost] | None, domains: int) -> dict:
    """Returns entries, prices and growth as JSON values."""
    return {
        "entries": [vars(cost) for cost in bill.entries],
        "update": {name: vars(bill.update(name)) for name in bill.experts},
        "retraining": vars(retraining(bill, monolithic)) | {"measured": monolithic is not None},
        "growth": [
            vars(row) | {"modular": vars(row.modular), "retrained": vars(row.retrained)}
            for row in growth(bill, monolithic, domains)
        ],
    }


def lines(bill: Bill, monolithic: Sequence[Cost] | None, domains: int) -> list[str]:
    """Returns the same as tables for a terminal."""
    if monolithic is not None:
        how = "as the retrained model's ledger says"
    else:
        how = "taken as the sum of all domains' stages"
    router = "with the router's last stage" if bill.router else "its router is not trained yet"
    return [
        *_entry_lines(bill),
        "",
        f"Updating one domain ({router}); retraining {how}:",
        *_update_lines(bill, retraining(bill, monolithic)),
        "",
        "Domains added one by one, summed (the router at this run's price; "
        "extrapolated: at the mean price of a domain):",
        *_growth_lines(growth(bill, monolithic, domains)),
    ]


def _entry_lines(bill: Bill) -> list[str]:
    rows = [["step", "expert", "tokens", "sampled", "FLOPs", "seconds", "devices", "device"]]
    for cost in bill.entries:
        tokens = [f"{cost.tokens:,}", f"{cost.generated:,}"]
        work = [f"{cost.flops:.3g}", f"{cost.seconds:.1f}", str(cost.devices)]
        rows.append([cost.step, cost.expert or "-", *tokens, *work, cost.device])
    return aligned(rows)


def _update_lines(bill: Bill, whole: Price) -> list[str]:
    rows = [["update of", "tokens", "FLOPs", "device-seconds", "retraining / update"]]
    for name in bill.experts:
        update = bill.update(name)
        times = f"{whole.flops / update.flops:.1f} x" if update.flops else "-"
        rows.append([name, *_cells(update), times])
    rows.append(["all at once", *_cells(whole), ""])
    return aligned(rows)


def _growth_lines(grown: list[Growth]) -> list[str]:
    rows = [["domains", "modular FLOPs", "retrained FLOPs", "ratio", ""]]
    for row in grown:
        flops = [f"{row.modular.flops:.3g}", f"{row.retrained.flops:.3g}"]
        ratio = f"{row.retrained.flops / row.modular.flops:.2f}" if row.modular.flops else "-"
        rows.append([str(row.domains), *flops, ratio, "extrapolated" if row.extrapolated else ""])
    return aligned(rows)


def _cells(paid: Price) -> list[str]:
    return [f"{paid.tokens:,.0f}", f"{paid.flops:.3g}", f"{paid.device_seconds:.1f}"]
