"""The recipe of LISA's tiny base weights, on the world and by the stages of `ans.toy.tiny`.

(a) SAM alone, told which object by a point or by word vectors; (b) everything, the `[SEG]` vector first drawn towards (a)'s word
vectors. It describes nothing, so there is no stage of captions.
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SamModel

from ans.data.mixing import keyed_rng
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.decoders.sam import Network
from ans.model.families.lisa import TEMPLATE, Llava
from ans.model.preprocess import CLIP_MEAN, CLIP_STD, longest_side, middle_square, normalise, resize
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import pad_right
from ans.toy.expressions import VOCABULARY
from ans.toy.recipe import (
    ALIGN_SHARE,
    LR,
    POINT_SCALE,
    POINT_SHARE,
    POINTS_ONLY,
    SAM2_LR_SCALE,
    TrainingScene,
    bag_of_words,
    grid_of,
    load_scenes,
    mask_loss,
    run_stage,
    sam_loss,
    waves,
    word_vectors,
)

SEED = 18
STEPS = {"sam": 2500, "joint": 1200}
EACH = 4
"""Expressions of an image in one step."""
ASKED = 0.3
"""Share of the expressions that come as a whole sentence, as ReasonSeg's long queries do."""
SENTENCE = "Which of the things in this café is the {}?"

_SPECIAL = ("<s>", "</s>", "<image>", "[SEG]")
_UNUSED = r"mask_embed|point_embed|iou_prediction_head|output_hypernetworks_mlps\.[1-3]"
SIDE, PATCH, WIDTH, PROMPT = 96, 8, 64, 96
"""Of SAM: pixels of the image and of a patch, and the widths of its image encoder and of its prompts."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one token per word of the prompts, of the world and of its ReasonSeg; text comes back with single spaces."""
    texts = [TEMPLATE.instruction, *TEMPLATE.questions, *TEMPLATE.sentences, TEMPLATE.segment, *prompts.SEG_ANSWERS, SENTENCE]
    texts += ["café –", *VOCABULARY]
    for special in _SPECIAL:
        texts = [text.replace(special, " ") for text in texts]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    model.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    model.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    start = [("<s>", model.token_to_id("<s>"))]
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def config(words: PreTrainedTokenizerFast) -> dict[str, object]:
    """Return the model's `config.json`: 1.2 M parameters."""
    return {
        "model_type": "lisa",
        "template": "lisa",
        "image_token_index": words.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 96,
            "patch_size": 16,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(words),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
        },
        "sam_config": {
            "vision_config": {
                "hidden_size": WIDTH,
                "output_channels": PROMPT,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": SIDE,
                "patch_size": PATCH,
                "window_size": 6,
                "global_attn_indexes": [1, 3],
                "num_pos_feats": PROMPT // 2,
            },
            "prompt_encoder_config": {"hidden_size": PROMPT, "image_size": SIDE, "patch_size": PATCH},
            "mask_decoder_config": {
                "hidden_size": PROMPT,
                "mlp_dim": 256,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": 32,
            },
        },
    }


def new_model() -> Segmenter:
    """Return random weights of the right scale: transformers' are too small for SAM to learn from nothing."""
    torch.manual_seed(SEED)
    words = tokenizer()
    model = Segmenter(ModelConfig.from_dict(config(words)), words)
    assert isinstance(model.vlm, Llava)
    sam = _sam(model)
    patches = sam.vision_encoder.pos_embed
    assert patches is not None
    with torch.no_grad():
        for module in model.sam.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
                module.reset_parameters()
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.weight.mul_(1.3)
        patches.copy_(waves(SIDE // PATCH, WIDTH).view(1, SIDE // PATCH, SIDE // PATCH, WIDTH))
        places = sam.shared_image_embedding.positional_embedding
        nn.init.normal_(places)
        sam.prompt_encoder.shared_embedding.positional_embedding.copy_(places)
        positions = model.vlm.vision_tower.embeddings.position_embedding.weight
        positions[1:] = waves(6, 64)
    return model


def _sam(model: Segmenter) -> SamModel:
    assert isinstance(model.sam, Network)
    return model.sam.sam


def prepare(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the square that CLIP sees, and the image as SAM sees it, not padded yet."""
    height, width = longest_side(image.height, image.width, SIDE)
    return np.asarray(middle_square(image, 96)), np.asarray(resize(image, width, height, Image.Resampling.BILINEAR))


def sam_pixels(arrays: list[np.ndarray]) -> Tensor:
    """Return (B, 3, SIDE, SIDE), padded."""
    images = [normalise([Image.fromarray(array)])[0] for array in arrays]
    return torch.stack([F.pad(image, (0, SIDE - image.shape[2], 0, SIDE - image.shape[1])) for image in images])


def joint_loss(
    model: Segmenter, bag: nn.EmbeddingBag, scenes: list[TrainingScene], rng: np.random.Generator, align: float
) -> Tensor:
    """Return the loss of stage (b): 12 images with up to `EACH` expressions each; `align` weighs the pull to the word vectors."""
    chosen = [scenes[i] for i in rng.choice(len(scenes), 12, replace=False)]
    encoded, index, texts, targets = [], [], [], []
    image = model.template.image_string(grid_of(model).tokens)
    for place, scene in enumerate(chosen):
        for number in rng.permutation(len(scene.captions))[:EACH]:
            text = scene.expressions[number][rng.integers(len(scene.expressions[number]))]
            asked = SENTENCE.format(text) if rng.random() < ASKED else text
            questions = model.template.training_questions(asked)
            question = questions[rng.integers(len(questions))].format(model.template.expression(asked))
            answer = prompts.SEG_ANSWERS[rng.integers(len(prompts.SEG_ANSWERS))]
            turn = prompts.Turn(image + question, answer)
            encoded.append(prompts.encode_conversation(model.tokenizer, model.template, [turn]))
            index.append(place)
            texts.append(text)
            targets.append(scene.targets[number])
    ids, labels, attention = pad_right(encoded)
    pixels = normalise([Image.fromarray(scene.tile) for scene in chosen], CLIP_MEAN, CLIP_STD)
    features = Features(model.vlm.encode(pixels, [grid_of(model)] * len(chosen)), (), [])
    out = model(features, Conversations(ids, labels, attention, index, [None] * len(ids)))
    levels = model.sam.encode(sam_pixels([scene.sam for scene in chosen]))
    masks = model.sam.decode(model.sam.project(levels), out.seg_image, out.seg_embeds)
    loss = mask_loss(masks.low_res, torch.stack(targets)) + out.language_loss / len(out.labels)
    if align:
        with torch.no_grad():
            goal = word_vectors(bag, model, texts)
        loss = loss + align * F.mse_loss(out.seg_embeds, goal)
    return loss


def stage(name: str, root: Path, folder: Path) -> None:
    """Run one stage; `joint` starts from what `sam` left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model()
    scenes = load_scenes(root, "train", model.config, prepare)
    bag = bag_of_words(model)
    learnt = [p for part, p in model.sam.named_parameters() if not re.search(_UNUSED, part)]
    if name == "sam":
        places = _sam(model).shared_image_embedding

        def loss_at(step: int) -> Tensor:
            share = 1.0 if step < POINTS_ONLY * STEPS["sam"] else POINT_SHARE
            rng = keyed_rng(SEED, 1, step)
            return sam_loss(model, bag, scenes, rng, share, lambda at: POINT_SCALE * places(at), sam_pixels, each=EACH)

        groups = [{"params": [*learnt, *bag.parameters()]}]
        run_stage(name, STEPS[name], {"sam": model.sam, "bag": bag}, groups, loss_at, folder)
    else:
        for key, module in (("sam", model.sam), ("bag", bag)):
            module.load_state_dict(torch.load(folder / "sam.pt", weights_only=True)["modules"][key])
        groups = [
            {"params": [*model.vlm.parameters(), *model.text_hidden_fcs.parameters()]},
            {"params": learnt, "lr": LR * SAM2_LR_SCALE},
        ]
        limit = ALIGN_SHARE * STEPS["joint"]

        def loss_at(step: int) -> Tensor:
            return joint_loss(model, bag, scenes, keyed_rng(SEED, 3, step), max(0.0, 1 - step / limit))

        run_stage(name, STEPS[name], {"model": model}, groups, loss_at, folder)
