"""InternVL2.5: a vision transformer, a two-layer projector and a language model, from transformers' own modules.

Two halves that meet at `mlp1`: `encode` depends on nothing that is ever fine-tuned, so its output is computed once per image and
shared; `project` is where the trained part begins.
"""

from torch import Tensor, nn
from transformers import InternVLVisionModel, Qwen2ForCausalLM

from ans.model.config import ModelConfig


class InternVL(nn.Module):
    """Image tiles and token ids to input embeddings; the language model itself is `language_model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = InternVLVisionModel(config.vision)
        self.language_model = Qwen2ForCausalLM(config.language)
        shuffled, width = config.vision.hidden_size * int(1 / config.downsample_ratio) ** 2, config.language.hidden_size
        self.mlp1 = nn.Sequential(nn.LayerNorm(shuffled), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width))

    def encode(self, pixels: Tensor) -> Tensor:
        """(T, 3, S, S) normalised tiles -> (T, G*G, C) pixel-shuffled features of the vision transformer."""
        hidden = self.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        return _pixel_shuffle(hidden, int(1 / self.config.downsample_ratio))

    def project(self, features: Tensor) -> Tensor:
        """(T, G*G, C) features -> (T, G*G, D) image tokens in the language model's width."""
        return self.mlp1(features.to(self.mlp1[0].weight.dtype))

    def embed(self, ids: Tensor, visual: Tensor, image_token: int) -> Tensor:
        """Token embeddings (B, L, D) of `ids` (B, L), the `image_token` positions filled by `visual` (N, D) in order.

        Raises `ValueError` when the number of positions is not N.
        """
        embeds = self.language_model.get_input_embeddings()(ids)
        positions = ids == image_token
        if int(positions.sum()) != len(visual):
            raise ValueError(
                f"the prompts hold {int(positions.sum())} image positions, the images and regions give {len(visual)}"
            )
        return embeds.masked_scatter(positions[..., None], visual.to(embeds.dtype))

    def hidden_states(self, embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, D) last hidden states after the final norm, for right-padded `embeds` and their mask (B, L)."""
        return self.language_model.model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state


def _pixel_shuffle(hidden: Tensor, factor: int) -> Tensor:
    """(T, H*W, C) -> (T, H*W/f^2, C*f^2): neighbouring cells move into channels (InternVL's `ps_version` v2)."""
    count, cells, channels = hidden.shape
    side = int(cells**0.5)
    hidden = hidden.view(count, side, side // factor, channels * factor).permute(0, 2, 1, 3)
    hidden = hidden.reshape(count, side // factor, side // factor, channels * factor * factor).permute(0, 2, 1, 3)
    return hidden.reshape(count, -1, channels * factor * factor)
