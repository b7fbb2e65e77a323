"""Tiny networks of other libraries, with random weights, saved as their own tools save them."""

from pathlib import Path

import torch

NAMES = ["sky", "land", "road", "car"]  # conftest's classes
SIDE = 64  # of the images that they are fed


def segformer(transformers, **more):
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **more,
    )
    return transformers.SegformerForSemanticSegmentation(config), transformers.SegformerImageProcessor


def _vit(more):
    return {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32} | more


def beit(transformers, **more):
    sizes = {"image_size": SIDE, "patch_size": 8, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False}
    config = transformers.BeitConfig(**_vit(sizes | {"pool_scales": [1, 2]}), **more)
    return transformers.BeitForSemanticSegmentation(config), transformers.BeitImageProcessor


def data2vec(transformers, **more):
    sizes = {"image_size": SIDE, "patch_size": 8, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False}
    config = transformers.Data2VecVisionConfig(**_vit(sizes | {"pool_scales": [1, 2]}), **more)
    return transformers.Data2VecVisionForSemanticSegmentation(config), transformers.BeitImageProcessor


def dpt(transformers, **more):
    config = transformers.DPTConfig(
        **_vit({"image_size": SIDE, "patch_size": 8, "backbone_out_indices": [0, 1, 2, 3]}),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        **more,
    )
    return transformers.DPTForSemanticSegmentation(config), transformers.DPTImageProcessor


def upernet(transformers, **more):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_in_channels=16, use_auxiliary_head=False, **more
    )
    return transformers.UperNetForSemanticSegmentation(config), transformers.SegformerImageProcessor


def _swin(transformers):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=SIDE, out_features=stages
    )


def mask2former(transformers, **more):
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(transformers),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5, **more,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config), transformers.Mask2FormerImageProcessor


def maskformer(transformers, **more):
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, decoder_attention_heads=2, encoder_attention_heads=2,
        decoder_ffn_dim=16, encoder_ffn_dim=16, num_queries=5,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=_swin(transformers), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **more
    )
    return transformers.MaskFormerForInstanceSegmentation(config), transformers.MaskFormerImageProcessor


def eomt(transformers, **more):
    config = transformers.EomtConfig(
        **_vit({"image_size": SIDE, "patch_size": 8}), num_queries=5, num_blocks=1, num_upscale_blocks=1, **more
    )
    return transformers.EomtForUniversalSegmentation(config), transformers.EomtImageProcessor


def mobilevit(transformers, **more):
    """Its processor swaps red and blue, and does not normalise."""
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 16, 16, 16], num_attention_heads=2, expand_ratio=1.0,
        image_size=SIDE, aspp_out_channels=8, atrous_rates=[1, 2, 3], **more,
    )  # fmt: skip
    return transformers.MobileViTForSemanticSegmentation(config), transformers.MobileViTImageProcessor


def oneformer(transformers, **more):
    config = transformers.OneFormerConfig(
        backbone_config=_swin(transformers), num_queries=5, text_encoder_width=16, text_encoder_num_layers=1,
        text_encoder_vocab_size=600, conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, query_dec_layers=1, **more,
    )  # fmt: skip
    return transformers.OneFormerForUniversalSegmentation(config), transformers.OneFormerImageProcessor


def tokenizer(transformers):
    """CLIP's, of four words: what a OneFormer is told its task in."""
    words, merges = [[*word[:-1], f"{word[-1]}</w>"] for word in ("the", "task", "is", "semantic")], []
    vocabulary = dict.fromkeys(part for word in words for part in word)
    for word in words:
        while len(word) > 1:
            merges.append((word[0], word[1]))
            word[:2] = ["".join(word[:2])]
            vocabulary[word[0]] = None
    tokens = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer({token: index for index, token in enumerate(tokens)}, merges)


SEMANTIC = (segformer, beit, data2vec, dpt, upernet)
MASKS = (mask2former, maskformer, eomt)


def save(kind, folder: Path, names=NAMES, half: bool = False, **processor) -> Path:
    """The network of one of the functions above and its image processor, in `folder`."""
    import transformers

    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    labels = dict(enumerate(names))
    net, made = kind(transformers, id2label=labels, label2id={name: index for index, name in labels.items()})
    for parameter in net.parameters():  # its small initial values would make all classes alike
        torch.nn.init.normal_(parameter, 0, 0.3)
    (net.half() if half else net).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    made(**({"size": size} | processor)).save_pretrained(folder)
    if kind is oneformer:
        tokenizer(transformers).save_pretrained(folder)
    return folder
