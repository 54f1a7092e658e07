"""The vision-language part: `Vlm` is all that trainer, evaluation and checkpoints use of it; InternVL2.5 and LLaVA fill it.

Two halves that meet at the projector: `encode` depends on nothing that is ever fine-tuned, so its output is computed once per
image and shared; `project` is where the trained part begins. All modules are transformers' own.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, InternVLVisionModel, PreTrainedModel, Qwen2ForCausalLM
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ans.model.config import LisaConfig, Sa2vaConfig


class Vlm(nn.Module):
    """Image tiles and token ids to input embeddings. `language_model` is a causal language model (`.model`, `.lm_head`,
    `.get_input_embeddings()`); `vision` the frozen image encoder."""

    language_model: PreTrainedModel

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The frozen image encoder."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What pixels have to be in."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """(T, 3, S, S) normalised tiles -> (T, G*G, C) features of the image encoder."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """(T, G*G, C) features -> (T, G*G, D) image tokens in the language model's width."""

    def restore_buffers(self) -> None:
        """Compute what is in no file, after a load onto modules that were made without memory."""
        rotary = self.language_model.model.rotary_emb
        self.language_model.model.rotary_emb = type(rotary)(config=self.language_model.config)

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


class InternVL(Vlm):
    """A vision transformer, pixel shuffle, a two-layer projector and Qwen2."""

    def __init__(self, config: Sa2vaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = InternVLVisionModel(config.vision)
        self.language_model = Qwen2ForCausalLM(config.language)
        shuffled, width = config.vision.hidden_size * int(1 / config.downsample_ratio) ** 2, config.language.hidden_size
        self.mlp1 = nn.Sequential(nn.LayerNorm(shuffled), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width))

    @property
    def vision(self) -> nn.Module:
        return self.vision_model

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.embeddings.cls_token.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        hidden = self.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        return _pixel_shuffle(hidden, int(1 / self.config.downsample_ratio))

    def project(self, features: Tensor) -> Tensor:
        return self.mlp1(features.to(self.mlp1[0].weight.dtype))


class Llava(Vlm):
    """The parts of transformers' `LlavaForConditionalGeneration`: CLIP's vision transformer, a two-layer projector, a language
    model. Features are the hidden states of one of CLIP's layers, without its class token."""

    def __init__(self, config: LisaConfig) -> None:
        super().__init__()
        self.layer = config.llava.vision_feature_layer
        self.vision_tower = CLIPVisionModel(config.llava.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config.llava)
        self.language_model = AutoModelForCausalLM.from_config(config.llava.text_config)

    @property
    def vision(self) -> nn.Module:
        return self.vision_tower

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.embeddings.class_embedding.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vision_tower(pixels, output_hidden_states=True).hidden_states[self.layer][:, 1:]

    def project(self, features: Tensor) -> Tensor:
        return self.multi_modal_projector(features.to(self.multi_modal_projector.linear_1.weight.dtype))

    def restore_buffers(self) -> None:
        super().restore_buffers()
        embeddings = self.vision_tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]


def _pixel_shuffle(hidden: Tensor, factor: int) -> Tensor:
    """(T, H*W, C) -> (T, H*W/f^2, C*f^2): neighbouring cells move into channels (InternVL's `ps_version` v2)."""
    count, cells, channels = hidden.shape
    side = int(cells**0.5)
    hidden = hidden.view(count, side, side // factor, channels * factor).permute(0, 2, 1, 3)
    hidden = hidden.reshape(count, side // factor, side // factor, channels * factor * factor).permute(0, 2, 1, 3)
    return hidden.reshape(count, -1, channels * factor * factor)
