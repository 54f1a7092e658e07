"""SAM2's memory (arXiv 2408.00714, section 4), with the `sam2` package's own modules, driven by hand.

The package's `track_step` takes no language vector and blanks absent objects, so it can do neither what Sa2VA does (magic-research/Sa2VA,
`sam2.py`) nor the first half of what Sa2VA-i does (kumuji/Sa2VA-i). Both are here, with what they share: what is written for a frame,
what is read for the next, and the pointer.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ans.model.decoder import Levels, Tracker, resized

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

ABSENT = -1024.0
"""The logit of every pixel of an object that the score says is not there (SAM2's `NO_OBJ_SCORE`)."""
INSIDE, OUTSIDE = 10.0, -10.0
"""The logits of a mask that is given."""


class Sam2(Protocol):
    """What a network on SAM2 offers to its memory."""

    model: "SAM2Base"

    def padding_prompt(self, count: int) -> tuple[Tensor, Tensor]: ...


@dataclass
class KeptFrames:
    """Of some frames, by number: `maps` (N, M, S/16, S/16) of image and masks, `pointers` (N, D) to the objects."""

    maps: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)


class Memory:
    """What is known of the frames of one video: all that were prompted, and the last of those that followed."""

    def __init__(self, model: "SAM2Base") -> None:
        self.model = model
        self.prompted, self.recent = KeptFrames(), KeptFrames()

    def write(self, frame: int, coarse: Tensor, low_res: Tensor, pointer: Tensor, prompted: bool) -> None:
        """Keep a frame, of which `coarse` (1, D, S/16, S/16) is the encoder's map and `low_res` (N, S/4, S/4) are the logits.

        Of the frames that followed, only as many stay as `read` can ask for.
        """
        side = self.model.image_size
        masks = resized(low_res[:, None], (side, side)).sigmoid()
        masks = masks * self.model.sigmoid_scale_for_mem_enc + self.model.sigmoid_bias_for_mem_enc
        found = self.model.memory_encoder(coarse, masks, skip_mask_sigmoid=True)["vision_features"]
        known = self.prompted if prompted else self.recent
        known.maps[frame], known.pointers[frame] = found, pointer
        _forget(self.recent.maps, frame - self.model.num_maskmem + 1)
        _forget(self.recent.pointers, frame - self.model.max_obj_ptrs_in_encoder + 1)

    def read(self, frame: int, coarse: Tensor) -> Tensor:
        """Return the map (N, D, S/16, S/16) of a frame that follows, after it has attended to what is known."""
        memory, places, pointers = self.tokens(frame)
        count = memory.shape[1]
        encoding = self.model.image_encoder.neck.position_encoding(coarse)
        out = self.model.memory_attention(
            curr=_tokens(coarse).expand(-1, count, -1),
            curr_pos=_tokens(encoding).expand(-1, count, -1),
            memory=memory,
            memory_pos=places.expand(-1, count, -1),
            num_obj_ptr_tokens=pointers,
        )
        return out.permute(1, 2, 0).unflatten(2, coarse.shape[-2:])

    def tokens(self, frame: int) -> tuple[Tensor, Tensor, int]:
        """Return what frame number `frame` attends to: tokens (K, N, M), their positions (K, 1, M), and how many of them, at the end, are
        pointers: the maps of all prompted frames and of the six before this one, the pointers of the prompted frames that are past and
        of the fifteen before this one."""
        model, maps, pointers = self.model, self.recent.maps, self.recent.pointers
        attended = [(0, one) for one in self.prompted.maps.values()]
        attended += [(back, maps[frame - back]) for back in range(model.num_maskmem - 1, 0, -1) if frame - back in maps]
        spatial = _tokens(model.memory_encoder.position_encoding(attended[0][1][:1]))
        tokens = [_tokens(one) for _, one in attended]
        places = [spatial + model.maskmem_tpos_enc[back - 1] for back, _ in attended]  # of a prompted frame the last, -1
        known = [one for number, one in self.prompted.pointers.items() if number <= frame]
        known += [pointers[frame - back] for back in range(1, model.max_obj_ptrs_in_encoder) if frame - back in pointers]
        # a pointer (N, D) becomes D / M tokens of the maps' width
        split = [part for one in known for part in one.unflatten(1, (-1, model.mem_dim)).unbind(1)]
        if split:
            tokens.append(torch.stack(split))
            places.append(spatial.new_zeros(len(split), 1, model.mem_dim))
        return torch.cat(tokens), torch.cat(places), len(split)


def _forget(kept: dict[int, Tensor], last: int) -> None:
    """Drop frame number `last` and those before it."""
    for number in [number for number in kept if number <= last]:
        del kept[number]


def _tokens(maps: Tensor) -> Tensor:
    """Map (N, C, h, w) to (h * w, N, C)."""
    return maps.flatten(2).permute(2, 0, 1)


@dataclass(frozen=True)
class Chosen:
    """The best by predicted IoU of a decoder's candidates: `low_res` (N, S/4, S/4), its `token` (N, D), and the object's `score`
    (N, 1). `ious` (N, K) of all candidates."""

    low_res: Tensor
    ious: Tensor
    token: Tensor
    score: Tensor


class Sam2Tracker(Tracker):
    """What both ways of propagation share. `decoder` is the mask decoder that writes the memory."""

    def __init__(self, network: Sam2, decoder: nn.Module) -> None:
        self.network, self.model, self.decoder = network, network.model, decoder
        self.memory = Memory(network.model)

    def choose(self, decoder: nn.Module, levels: Levels, coarse: Tensor, vectors: Tensor | None, count: int) -> Chosen:
        """Return `decoder`'s masks from `coarse` (N or 1, D, S/16, S/16), prompted by padding and, where they are given, by `vectors`."""
        sparse, dense = self.network.padding_prompt(count)
        if vectors is not None:
            sparse = torch.cat([sparse, vectors[:, None].to(sparse.dtype)], dim=1)
        masks, ious, tokens, score = self._heads(decoder, levels, coarse, sparse, dense, several=True)
        rows, best = torch.arange(count, device=ious.device), ious.argmax(-1)
        return Chosen(masks[rows, best], ious, tokens[rows, best], score)

    def pointer(self, token: Tensor, visible: Tensor) -> Tensor:
        """Return (N, D) to objects by their mask tokens (N, D); where `visible` (N, 1) is false, to no object."""
        return torch.where(visible, self.model.obj_ptr_proj(token), self.model.no_obj_ptr)

    def _heads(
        self, decoder: nn.Module, levels: Levels, coarse: Tensor, sparse: Tensor, dense: Tensor, several: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = len(sparse)
        return decoder(
            image_embeddings=coarse.expand(count, -1, -1, -1),
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            repeat_image=False,
            high_res_features=[
                decoder.conv_s0(levels[0]).expand(count, -1, -1, -1),
                decoder.conv_s1(levels[1]).expand(count, -1, -1, -1),
            ],
        )

    def _without_memory(self, levels: Levels) -> Tensor:
        return levels[2] + self.model.no_mem_embed.view(1, -1, 1, 1)


class OfficialTracker(Sam2Tracker):
    """Sa2VA: the fine-tuned decoder writes the memory and reads it, though it was trained without one. The language vector prompts it
    on the prompted frames only. The object score replaces the pointer, and does not touch the mask."""

    def __init__(self, network: Sam2) -> None:
        super().__init__(network, network.model.sam_mask_decoder)

    def prompt(self, frame: int, levels: Levels, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        return self._keep(
            frame, levels, self.choose(self.decoder, levels, self._without_memory(levels), vectors, len(vectors)), True
        )

    def follow(self, frame: int, levels: Levels) -> Tensor:
        coarse = self.memory.read(frame, levels[2])
        return self._keep(frame, levels, self.choose(self.decoder, levels, coarse, None, len(coarse)), False)

    def _keep(self, frame: int, levels: Levels, chosen: Chosen, prompted: bool) -> Tensor:
        pointer = self.pointer(chosen.token, chosen.score > 0)
        self.memory.write(frame, levels[2], chosen.low_res, pointer, prompted)
        return chosen.low_res


class ConsistentTracker(Sam2Tracker):
    """Sa2VA-i: the fine-tuned decoder does on the prompted frames what it was trained for; its masks, cut at 0, prompt SAM2 with its
    `original` decoder, which is the one that its memory was trained with. An object with a score of at most 0 has no mask."""

    def __init__(self, network: Sam2, original: nn.Module) -> None:
        super().__init__(network, original)

    @torch.no_grad()
    def prompt(self, frame: int, levels: Levels, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        tuned = self.model.sam_mask_decoder
        low_res = self.choose(tuned, levels, self._without_memory(levels), vectors, len(vectors)).low_res
        # brought to the image's size in one step, where an answer's masks take two
        return self.prompt_masks(frame, levels, resized(low_res[:, None], size)[:, 0] > 0)

    @torch.no_grad()
    def prompt_masks(self, frame: int, levels: Levels, masks: Tensor) -> Tensor:
        """Prompt as `prompt` does, by masks (N, h, w) bool at the image's size."""
        side = self.model.image_size
        scaled = F.interpolate(masks[:, None].float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        inside = (scaled >= 0.5).float()
        logits = inside * (INSIDE - OUTSIDE) + OUTSIDE
        low_res = F.interpolate(logits, size=(side // 4, side // 4), mode="bilinear", align_corners=False, antialias=True)[:, 0]
        points = torch.zeros(len(masks), 1, 2, device=masks.device)
        labels = -torch.ones(len(masks), 1, dtype=torch.int32, device=masks.device)
        sparse, dense = self.model.sam_prompt_encoder(
            points=(points, labels), boxes=None, masks=self.model.mask_downsample(inside)
        )
        _, _, tokens, score = self._heads(self.decoder, levels, levels[2], sparse, dense, several=False)
        visible = (score > 0) & inside.flatten(1).any(1, keepdim=True)
        self.memory.write(frame, levels[2], low_res, self.pointer(tokens[:, 0], visible), True)
        return low_res

    @torch.no_grad()
    def follow(self, frame: int, levels: Levels) -> Tensor:
        coarse = self.memory.read(frame, levels[2])
        chosen = self.choose(self.decoder, levels, coarse, None, len(coarse))
        visible = chosen.score > 0
        low_res = torch.where(visible[..., None], chosen.low_res, ABSENT)
        self.memory.write(frame, levels[2], low_res, self.pointer(chosen.token, visible), False)
        return low_res
