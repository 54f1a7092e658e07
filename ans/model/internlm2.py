"""InternLM2 (arXiv 2403.17297), which transformers does not have: Llama whose queries, keys and values come from one layer.

Parts have the official names, except for `output`, which is `lm_head` here as in every other language model. Norms, rotary positions
and masks are those of transformers' Llama.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

LAYERS = ("wqkv", "wo", "w1", "w2", "w3")
"""The linear layers, by the last part of their names."""


class _Attention(nn.Module):
    """`wqkv` has for each of the key and value heads the queries that share it, then the key, then the value."""

    def __init__(self, config: LlamaConfig, number: int) -> None:
        super().__init__()
        heads, self.groups, self.number = (
            config.num_attention_heads,
            config.num_key_value_heads or config.num_attention_heads,
            number,
        )
        width = config.hidden_size // heads
        self.shape = (self.groups, heads // self.groups + 2, width)
        self.wqkv = nn.Linear(config.hidden_size, (heads + 2 * self.groups) * width, bias=config.attention_bias)
        self.wo = nn.Linear(heads * width, config.hidden_size, bias=config.attention_bias)

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        fused = self.wqkv(hidden).unflatten(-1, self.shape)  # (B, L, groups, ..., width)
        query, key, value = fused[..., :-2, :].flatten(2, 3), fused[..., -2, :], fused[..., -1, :]
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *rotary)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.number)
        causal = mask is None and query.shape[2] > 1
        found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=True)
        return self.wo(found.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(hidden)) * self.w3(hidden))


class _Layer(GradientCheckpointingLayer):
    def __init__(self, config: LlamaConfig, number: int) -> None:
        super().__init__()
        self.attention = _Attention(config, number)
        self.feed_forward = _FeedForward(config)
        self.attention_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), mask, rotary, cache)
        return hidden + self.feed_forward(self.ffn_norm(hidden))


class InternLM2Model(PreTrainedModel):
    """Embeddings, layers and the last norm."""

    config_class = LlamaConfig
    _input_embed_layer = "tok_embeddings"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_Layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Mapping[str, Tensor | None],
        position_ids: Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Run as the models of transformers are called, with a mask for each kind of layer; `use_cache` is whether there is a cache."""
        mask = attention_mask["full_attention"]
        rotary, hidden = self.rotary_emb(inputs_embeds, position_ids), inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, mask, rotary, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class InternLM2(PreTrainedModel):
    """With the output layer."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    _input_embed_layer = "tok_embeddings"
    _tied_weights_keys = {"lm_head.weight": "model.tok_embeddings.weight"}
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
