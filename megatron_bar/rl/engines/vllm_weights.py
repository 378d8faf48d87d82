"""The trainer's tensors into a vLLM worker, and out of it again: what it holds is compared with what arrived.

vLLM loads tensors of a running model module by module (vllm/model_executor/model_loader/reload): a module is
built from its tensors as at the start, and what that gives is copied over what runs. It needs all of a
module's tensors, so those that did not arrive come from the folder. On a CPU one thing goes wrong (0.32): the
weights of experts are packed for its kernels when the kernel is first made
(`UnquantizedFusedMoEMethod._setup_kernel`), and not again when they are loaded anew, so unpacked values would
lie where packed ones are read. There the kernel is made anew. On a GPU the method converts on every load,
nothing is packed behind it, and CUDA graphs need the kernel to stay.

That takes several times what copying and packing do, so on a CPU it is done once: by the comparison that
follows, vLLM's loading has then shown where each tensor lies and how, and later ones are put there.
"""

import re
from collections.abc import Callable, Iterator

import delivery
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle.unquantized import convert_to_unquantized_kernel_format
from vllm.platforms import current_platform

_KIND = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
"""Projection of an expert, by its name in most classes and in Mixtral's."""
_EXPERT = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(_KIND)})\.weight")
_FUSED = {
    "q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "k_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "v_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "gate_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
    "up_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
}
"""Module that holds a projection's rows below others', and all of them in order."""


class Weights:
    """Is mixed into vLLM's worker (its ``worker_extension_cls``)."""

    shown: frozenset[str] = frozenset()
    """Tensors that vLLM's own loading has put where they were looked for, whole."""

    def taken_for(self) -> dict:
        """Returns what the engine takes the model for."""
        model = self.model_runner.model_config
        config = model.hf_text_config
        experts = getattr(config, "num_experts_per_tok", None)
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "vocab_size": config.vocab_size,
            "num_experts_per_tok": experts,
            "rope_theta": config.rope_parameters["rope_theta"],
            "rope_factor": config.rope_parameters.get("factor"),
            "max_length": model.max_model_len,
        }

    @torch.no_grad()
    def take(self, path: str, sums: dict[str, int], folder: str) -> list[str]:
        """Loads the tensors of the file ``path``; returns the names of those that are then held otherwise."""
        self.arrived = delivery.read(path, sums)
        self.folder = folder
        if self.arrived.keys() <= self.shown:
            self._put()
            return self.wrong()
        self._load()
        wrong = self.wrong()
        whole = self.vllm_config.parallel_config.tensor_parallel_size == 1
        if current_platform.is_cpu() and whole and all(map(_packer, self._all_experts().values())):
            self.shown = frozenset(self.arrived).difference(wrong)
        return wrong

    def _all_experts(self) -> dict[str, nn.Module]:
        return _experts(self.model_runner.get_model())

    def _load(self) -> None:
        """Loads what arrived as vLLM does."""
        touched = {_module_name(name) for name in self.arrived}
        for name, experts in self._all_experts().items():
            if name in touched and current_platform.is_cpu():
                experts.quant_method.moe_kernel = None
        wanted = touched.__contains__
        tensors = delivery.with_others(self.arrived, self.folder, lambda name: wanted(_module_name(name)))
        self.model_runner.reload_weights(weights_iterator=tensors)

    def _put(self) -> None:
        """Puts what arrived where it is read, as vLLM's loading did before."""
        model = self.model_runner.get_model()
        all_experts = self._all_experts()
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.arrived.items():
            modules.setdefault(_module_name(name), {})[name] = tensor
        for module_name, tensors in modules.items():
            if module_name in all_experts:
                _put_experts(all_experts[module_name], tensors)
            else:
                _put_rows(model, module_name, tensors, self.folder)

    def wrong(self) -> list[str]:
        """Returns the names of tensors that are held otherwise than they arrived.

        Of a tensor that is spread over workers each has a part, and nothing is said here.
        """
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return []
        model = self.model_runner.get_model()
        experts = _experts(model)
        weight_of = _Weights(model)
        wrong = []
        by_layer: dict[str, list[str]] = {}
        for name, tensor in sorted(self.arrived.items(), key=lambda item: _module_name(item[0])):
            if match := _EXPERT.fullmatch(name):
                by_layer.setdefault(match[1], []).append(name)
            elif not torch.equal(_rows(model, name, weight_of(name), len(tensor)), tensor.to(_device(model))):
                wrong.append(name)
        for prefix, names in by_layer.items():
            wrong += _wrong_experts(experts[prefix], prefix, names, self.arrived, self.folder)
        return wrong


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold a layer's experts, by the name before the expert's number."""
    return {
        f"{name.partition('.experts')[0]}.experts": module
        for name, module in model.named_modules()
        if hasattr(module, "w13_weight")
    }


def _module_name(name: str) -> str:
    """The name of the module that holds the tensor ``name``, alike for all that it holds."""
    if match := _EXPERT.fullmatch(name):
        return match[1]
    module = name.rpartition(".")[0]
    own = module.rpartition(".")[2]
    return module.removesuffix(own) + _FUSED[own][0] if own in _FUSED else module


class _Weights:
    """The weights of the modules that hold tensors, fused as they are there; each is asked for in a row."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.of = ("", torch.empty(0))

    def __call__(self, name: str) -> Tensor:
        module_name = _module_name(name)
        if name.endswith(".bias"):
            return self.model.get_submodule(module_name).bias
        if self.of[0] != module_name:
            self.of = (module_name, self._found(self.model.get_submodule(module_name)))
        return self.of[1]

    def _found(self, module: nn.Module) -> Tensor:
        if module.weight.numel():
            return module.weight
        # Packed where nobody sees it: a product with the identity is exact, and says every value.
        eye = torch.eye(module.input_size, dtype=module.weight.dtype, device=_device(self.model))
        return module.quant_method.apply(module, eye).t()


def _rows(model: nn.Module, name: str, weight: Tensor, count: int) -> Tensor:
    """The ``count`` rows of the tensor ``name`` in the ``weight`` of the module that holds it."""
    own = name.rpartition(".")[0].rpartition(".")[2]
    start = 0
    if own in _FUSED:
        sizes = model.get_submodule(_module_name(name)).output_sizes
        sizes = dict(zip(_FUSED[own][1], sizes, strict=True))
        start = sum(size for other, size in _before(sizes, own))
    return weight[start : start + count]


def _put_rows(model: nn.Module, module_name: str, tensors: dict[str, Tensor], folder: str) -> None:
    """Puts ``tensors`` into a module, and packs its weight where the module does so."""
    module = model.get_submodule(module_name)
    for name in [name for name in tensors if name.endswith(".bias")]:
        tensor = tensors.pop(name)
        _rows(model, name, module.bias, len(tensor)).copy_(tensor)
    if not module.weight.numel():  # packed away: all of it is needed once more
        own = module_name.rpartition(".")[2]
        before = module_name.removesuffix(own)
        parts = next((parts for fused, parts in _FUSED.values() if fused == own), (own,))
        names = [f"{before}{part}.weight" for part in parts]
        found = dict(delivery.with_others(tensors, folder, names.__contains__))
        module.weight = nn.Parameter(torch.cat([found[name] for name in names]), requires_grad=False)
    else:
        for name, tensor in tensors.items():
            _rows(model, name, module.weight, len(tensor)).copy_(tensor)
    if (method := getattr(module, "quant_method", None)) is not None:
        method.process_weights_after_loading(module)


def _put_experts(experts: nn.Module, tensors: dict[str, Tensor]) -> None:
    pack = _packer(experts)
    for name, tensor in tensors.items():
        pack(tensor[None], _part_of(experts, name).view(1, *tensor.shape))


def _packer(experts: nn.Module) -> Callable[[Tensor, Tensor], None] | None:
    """Writes one projection ``[1, o, i]`` of an expert into another tensor as a CPU's kernels want it; None
    where there is more to it."""
    kernel = experts.quant_method.moe_kernel.fused_experts
    if not isinstance(kernel, CPUUnquantizedExperts) or kernel._use_zentorch:
        return None
    size = kernel.moe_config.intermediate_size_per_partition
    padded = kernel._padded_intermediate_size(kernel.moe_config) != size
    return None if padded else lambda weight, out: torch.ops._C.prepack_moe_weight(weight, out, kernel.isa)


def _before(sizes: dict[str, int], name: str) -> Iterator[tuple[str, int]]:
    for other, size in sizes.items():
        if other == name:
            return
        yield other, size


def _wrong_experts(
    module: nn.Module, prefix: str, names: list[str], arrived: dict[str, Tensor], folder: str
) -> list[str]:
    """Returns those of ``names``, tensors of a layer's experts, that are held otherwise.

    What the kernels read may be packed, so tensors are packed once more and compared as that: the layer's, or
    each by itself.
    """
    if pack := _packer(module):
        packed = torch.empty_like(arrived[names[0]])  # of as many values as any
        wrong = []
        for name in names:
            tensor = arrived[name]
            pack(tensor[None], packed.view(1, *tensor.shape))
            if not torch.equal(_part_of(module, name).view(-1), packed.view(-1)):
                wrong.append(name)
        return wrong
    tensors = dict(delivery.with_others(arrived, folder, lambda name: _module_name(name) == prefix))
    tensors = {name: tensor for name, tensor in tensors.items() if _module_name(name) == prefix}
    found = {_expert_part(name): tensor for name, tensor in tensors.items()}

    def stacked(kind: str) -> Tensor:
        return torch.stack([found[n, kind] for n in range(len(found) // 3)])

    device = module.w13_weight.device
    method = module.quant_method
    built = nn.Module()
    w13 = torch.cat([stacked("gate"), stacked("up")], 1).to(device)
    w13, w2 = convert_to_unquantized_kernel_format(
        method.unquantized_backend,
        moe_config=method.moe,
        w13_weight=w13,
        w2_weight=stacked("down").to(device),
    )
    built.w13_weight = nn.Parameter(w13, requires_grad=False)
    built.w2_weight = nn.Parameter(w2, requires_grad=False)
    method.moe_kernel.fused_experts.process_weights_after_loading(built)
    return [name for name in names if not torch.equal(_part_of(module, name), _part_of(built, name))]


def _part_of(experts: nn.Module, name: str) -> Tensor:
    """The values of the tensor ``name`` as kernels read them: an expert's gate lies before its up
    projection."""
    number, kind = _expert_part(name)
    if kind == "down":
        return experts.w2_weight[number]
    gate, up = experts.w13_weight[number].flatten().chunk(2)
    return gate if kind == "gate" else up


def _expert_part(name: str) -> tuple[int, str]:
    """The number of the expert that the tensor ``name`` is of, and which of its projections it is."""
    number, kind = _EXPERT.fullmatch(name).group(2, 3)
    return int(number), _KIND[kind]
