"""Flags of the 15 published ADM models, from the README of OpenAI's guided-diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from admg.checkpoints.networks import Kind


@dataclass(frozen=True)
class PublishedFlags:
    """The flags of a published model.

    kind: diffusion, upsampler or classifier
    flags: flags of guided-diffusion's scripts that build the network
    """

    kind: Kind
    flags: str


PUBLISHED_FLAGS: dict[str, PublishedFlags] = {
    "openai/imagenet-64": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
        "--image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --resblock_updown True --use_new_attention_order True "
        "--use_fp16 True --use_scale_shift_norm True",
    ),
    "openai/imagenet-128": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond True --image_size 128 "
        "--noise_schedule linear --num_channels 256 --num_heads 4 --use_fp16 True",
    ),
    "openai/imagenet-256": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond True --image_size 256 "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 True",
    ),
    "openai/imagenet-256-uncond": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond False --image_size 256 "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 True",
    ),
    "openai/imagenet-512": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond True --image_size 512 "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 False",
    ),
    "openai/imagenet-64-classifier": PublishedFlags(
        "classifier",
        "--classifier_attention_resolutions 32,16,8 --classifier_depth 4 --classifier_width 128 "
        "--classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm "
        "True --image_size 64",
    ),
    "openai/imagenet-128-classifier": PublishedFlags(
        "classifier",
        "--classifier_attention_resolutions 32,16,8 --classifier_depth 2 --classifier_width 128 "
        "--classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm "
        "True --image_size 128",
    ),
    "openai/imagenet-256-classifier": PublishedFlags(
        "classifier",
        "--classifier_attention_resolutions 32,16,8 --classifier_depth 2 --classifier_width 128 "
        "--classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm "
        "True --image_size 256",
    ),
    "openai/imagenet-512-classifier": PublishedFlags(
        "classifier",
        "--classifier_attention_resolutions 32,16,8 --classifier_depth 2 --classifier_width 128 "
        "--classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm "
        "True --image_size 512",
    ),
    "openai/imagenet-64-to-256": PublishedFlags(
        "upsampler",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond True --large_size 256 "
        "--small_size 64 --noise_schedule linear --num_channels 192 --num_heads 4 --use_fp16 True",
    ),
    "openai/imagenet-128-to-512": PublishedFlags(
        "upsampler",
        "--attention_resolutions 32,16 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
        "--use_scale_shift_norm True --num_res_blocks 2 --class_cond True --large_size 512 --small_size "
        "128 --noise_schedule linear --num_channels 192 --num_head_channels 64 --use_fp16 True",
    ),
    "openai/lsun-bedroom": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond False --dropout 0.1 "
        "--image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 "
        "True",
    ),
    "openai/lsun-cat": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond False --dropout 0.1 "
        "--image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 "
        "True",
    ),
    "openai/lsun-horse": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond False --dropout 0.1 "
        "--image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 "
        "True",
    ),
    "openai/lsun-horse-nodropout": PublishedFlags(
        "diffusion",
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown "
        "True --use_scale_shift_norm True --num_res_blocks 2 --class_cond False --dropout 0.0 "
        "--image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 "
        "True",
    ),
}
"""Flags by model name."""
