"""The common pre-norm decoder (Qwen2, Llama) with few passes over memory, in float32 on a CPU.

A small model spends more time in fetching numbers than in multiplying them. So the norms' weights
and the scale of the attention scores are multiplied into the matrices that follow, queries, keys
and values are one product, and so are the two halves of the gate. The parameters stay those of the
transformers module: gradients land there.

N tokens in a flat list, D hidden width, F inner width, Q query and H key-value heads, W head width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

# Mixes the tokens of one layer: (number of the layer, qkv [N, Q + 2H, W]) -> [N, Q W].
Attend = Callable[[int, Tensor], Tensor]


class Layer(NamedTuple):
    """The matrices of one layer."""

    qkv: Tensor  # [(Q + 2H) W, D] queries, keys, values; see FusedDecoder._order
    bias: Tensor | None  # [(Q + 2H) W]
    out: Tensor  # [D, Q W]
    gate_up: Tensor  # [2F, D]
    down: Tensor  # [D, F]


class FusedDecoder:
    """Runs the layers of a transformers module of this kind, whoever attends to what.

    Queries and keys come with their positions turned in, and queries scaled: attention scores are
    plain products.
    """

    def __init__(self, model) -> None:
        config, attention = model.config, model.base_model.layers[0].self_attn
        self._model, self._base = model, model.base_model
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.width = attention.head_dim
        self._scale = attention.scaling
        self._epsilon = config.rms_norm_eps
        # The halves of a head that the module turns against each other, side by side: as complex
        # numbers. Queries and keys are permuted alike, so their products stay.
        pairs = torch.arange(self.width).view(2, -1).T.flatten()
        turned = (self.queries + self.keys) * self.width
        heads = torch.arange(0, turned, self.width)[:, None] + pairs
        whole = turned + self.keys * self.width
        self._order = torch.cat([heads.flatten(), torch.arange(turned, whole)])

    @staticmethod
    def fits(model) -> bool:
        """Whether the module is of this kind: by its parts, and by a trial on a few tokens."""
        return _has_the_parts(model) and _agrees(model)

    def layers(self) -> list[Layer]:
        """The matrices as they stand now; inside the graph of gradients where that is on."""
        return [self._fuse(layer) for layer in self._base.layers]

    def rotation(self, length: int) -> Tensor:
        """[length, (Q + 2H) W / 2] complex: what turns queries and keys at each position."""
        angle = torch.arange(length)[:, None] * self._base.rotary_emb.inv_freq
        turn = torch.polar(torch.ones_like(angle), angle).repeat(1, self.queries + self.keys)
        return torch.cat([turn, turn.new_ones(length, self.keys * self.width // 2)], dim=1)

    def run(
        self, tokens: Tensor, rotation: Tensor, layers: Sequence[Layer], attend: Attend
    ) -> Tensor:
        """Hidden states [N, D] of tokens [N] before the last norm; rotation: [N, ...] of each."""
        hidden = self._base.embed_tokens(tokens)
        for number, layer in enumerate(layers):
            qkv = linear(_apply(_Normalise, hidden, self._epsilon), layer.qkv, layer.bias)
            qkv = _apply(_Turn, qkv, rotation).view(len(tokens), -1, self.width)
            hidden = torch.addmm(hidden, attend(number, qkv), layer.out.T)
            gate_up = linear(_apply(_Normalise, hidden, self._epsilon), layer.gate_up)
            hidden = torch.addmm(hidden, _apply(_Gate, gate_up), layer.down.T)
        return hidden

    def norm(self, hidden: Tensor) -> Tensor:
        """The last norm: what the output head reads."""
        return _apply(_Normalise, hidden, self._epsilon) * self._base.norm.weight

    def _fuse(self, layer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        scales = (self._scale, 1.0, 1.0)
        qkv = torch.cat([p.weight * s for p, s in zip(parts, scales, strict=True)])
        bias = None
        if parts[0].bias is not None:
            bias = torch.cat([p.bias * s for p, s in zip(parts, scales, strict=True)])[self._order]
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return Layer(
            qkv=(qkv * layer.input_layernorm.weight)[self._order],
            bias=bias,
            out=attention.o_proj.weight,
            gate_up=gate_up * layer.post_attention_layernorm.weight,
            down=mlp.down_proj.weight,
        )


def _has_the_parts(model) -> bool:
    config = model.config
    if config.model_type not in ("qwen2", "llama") or config.hidden_act != "silu":
        return False
    linears = [
        part
        for layer in model.base_model.layers
        for part in (*layer.self_attn.children(), *layer.mlp.children())
        if part is not layer.mlp.act_fn
    ]
    return (
        model.base_model.rotary_emb.rope_type == "default"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and all(type(part) is torch.nn.Linear for part in linears)  # no adapters, no quantisation
        and all(layer.self_attn.o_proj.bias is None for layer in model.base_model.layers)
        and all(layer.mlp.down_proj.bias is None for layer in model.base_model.layers)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    )


@torch.no_grad()
def _agrees(model) -> bool:
    fused = FusedDecoder(model)
    tokens = torch.arange(8).remainder(model.config.vocab_size)

    def attend(_: int, qkv: Tensor) -> Tensor:
        heads = qkv.transpose(0, 1)[None].split([fused.queries, fused.keys, fused.keys], dim=1)
        return causal_attention(*heads)[0].transpose(0, 1).flatten(1)

    hidden = fused.run(tokens, fused.rotation(8), fused.layers(), attend)
    theirs = model.base_model(tokens[None], use_cache=False).last_hidden_state[0]
    return torch.allclose(fused.norm(hidden), theirs, rtol=1e-3, atol=1e-3)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[B, Q, L, W] of whole sequences: queries alike, scaled; keys and values [B, H, L, W]."""
    return torch.nn.functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        is_causal=True,
        scale=1.0,
        enable_gqa=queries.shape[1] > keys.shape[1],
    )


def _apply(function: type[torch.autograd.Function], x: Tensor, *constants) -> Tensor:
    """The function of x; without gradients, free of what the graph would cost."""
    if torch.is_grad_enabled():
        return function.apply(x, *constants)
    return function.of(x, *constants)[0]


class _Normalise(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) over the last dimension."""

    @staticmethod
    def of(x, epsilon):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # reads x once
        rate = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        return x * rate, rate

    @staticmethod
    def forward(ctx, x, epsilon):
        out, rate = _Normalise.of(x, epsilon)
        ctx.save_for_backward(out, rate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out, rate = ctx.saved_tensors
        along = (grad * out).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, out, along, value=-1).mul_(rate), None


class _Gate(torch.autograd.Function):
    """silu(gate) * up for [gate, up] side by side."""

    @staticmethod
    def of(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        opened = silu(gate)
        return opened * up, opened

    @staticmethod
    def forward(ctx, gate_up):
        out, opened = _Gate.of(gate_up)
        ctx.save_for_backward(gate_up, opened)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        torch.mul(grad, opened, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return out


class _Turn(torch.autograd.Function):
    """x [N, 2K] as complex numbers, times `rotation` [N, K]."""

    @staticmethod
    def of(x, rotation):
        return (_times(x, rotation),)

    @staticmethod
    def forward(ctx, x, rotation):
        ctx.save_for_backward(rotation)
        return _times(x, rotation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (rotation,) = ctx.saved_tensors
        return _times(grad, rotation.conj_physical()), None


def _times(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(len(x), -1, 2))
    return torch.view_as_real(pairs * rotation).view_as(x)
