"""The flags about models mean the same in all five programs."""

import re

import pytest

from eval import reasoning, referring, semantic_cli
from textregion.cli.arguments import parse_arguments
from textregion.cli.flags import OPTIONS, chosen_preset, given_options
from textregion.errors import InputError
from textregion.presets import find_preset

PROGRAMS = {
    "TextRegionSegmenter.py": parse_arguments,
    "eval_semantic.py": lambda words: semantic_cli.parser().parse_args(["--config", "x.py", *words]),
    "eval_all_semantic.py": lambda words: semantic_cli.all_parser().parse_args(words),
    "eval_referring.py": lambda words: referring.parser().parse_args(
        ["--input_file_root", "x", "--image_root", "x", *words]
    ),
    "eval_reason_seg.py": lambda words: reasoning.parser().parse_args(["--dataset_dir", "x", *words]),
}
in_every_program = pytest.mark.parametrize("program", PROGRAMS)


@in_every_program
@pytest.mark.parametrize(
    ("architecture", "pretrained", "preset"),
    [
        ("ViT-B/16", "openai", "clip-vit-b16"),
        ("ViT-B/16", None, "clip-vit-b16"),
        ("ViT-B-16", "openai", "clip-vit-b16"),
        ("ViT-L/14", "openai", "clip-vit-l14"),
        ("ViT-L/14@336px", "openai", "clip-vit-l14-336"),
        ("ViT-L-14-336-quickgelu", "openai", "clip-vit-l14-336"),
        (None, "openai", "clip-vit-l14-336"),
        ("ViT-H-14", "laion2b_s32b_b79k", "openclip-vit-h14"),
        ("ViT-H/14", "laion2b_s32b_b79k", "openclip-vit-h14"),
        ("ViT-H-14", None, "openclip-vit-h14"),
        (None, "siglip2", "siglip2-l16-256"),
        ("ViT-L-16-SigLIP2-256", "siglip2", "siglip2-l16-256"),
        ("ViT-B-16-SigLIP2", "webli", "siglip2-b16"),
        (None, "meta", "pe-core-l14-336"),
        ("PE-Core-L14-336", "meta", "pe-core-l14-336"),
        ("PE-Core-B16-224", "meta", "pe-core-b16"),
        ("PE-Core-G14-448", None, "pe-core-bigg14-448"),
    ],
)
def test_published_spellings_mean_one_preset(program, architecture, pretrained, preset):
    words = [] if architecture is None else ["--clip_architecture", architecture]
    words += [] if pretrained is None else ["--clip-pretrained", pretrained]
    assert chosen_preset(PROGRAMS[program](words)) == preset
    assert find_preset(preset).name == preset


@in_every_program
def test_what_fits_nothing_is_refused(program):
    with pytest.raises(InputError, match="no model 'ViT-B/16' with weights 'meta'; expected one of openai: "):
        chosen_preset(PROGRAMS[program](["--clip_pretrained", "meta", "--clip_architecture", "ViT-B/16"]))


NUMBERS = [o for o in OPTIONS if isinstance(o.default, int | float) and not o.metadata["flag"].get("choices")]
VALUES = {bool: ("False", False), int: ("7", 7), float: ("0.25", 0.25), tuple: ("5,3", (5, 3))}


@in_every_program
def test_every_option_is_a_flag_in_both_spellings(program):
    for option in OPTIONS:
        choices = option.metadata["flag"].get("choices")
        kind = type(option.default) if option.default is not None else int
        word, value = (str(choices[-1]), choices[-1]) if choices else VALUES[kind]
        for flag in (f"--{option.name}", f"--{option.name.replace('_', '-')}"):
            assert given_options(PROGRAMS[program]([flag, word]))[option.name] == value


@in_every_program
def test_nothing_given_leaves_everything_as_it_is(program):
    args = PROGRAMS[program]([])
    assert given_options(args) == {}
    assert chosen_preset(args) is None
    assert given_options(PROGRAMS[program](["--random-weights"])) == {"random_weights": True}
    off = given_options(PROGRAMS[program](["--remove_global_patch", "False"]))
    assert off == {"global_patch_threshold": None}


@in_every_program
@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_a_negative_number_comes_through_to_the_check_of_its_range(program, option):
    if not isinstance(option.default, bool):
        assert given_options(PROGRAMS[program]([f"--{option.name}", "-1"]))[option.name] == -1


@in_every_program
def test_the_help_shows_every_flag_in_one_spelling(program, capsys):
    with pytest.raises(SystemExit):
        PROGRAMS[program](["--help"])
    text = capsys.readouterr().out
    assert re.findall(r"^ +(--[a-z]+-[a-z-]+)", text, re.MULTILINE) == []
