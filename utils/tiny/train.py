"""Trains the tiny models on a CPU: python -m utils.tiny.train clip|sam2 [options]

Continues from the shipped weights unless told otherwise (--init none starts from scratch), and prints scores
on fresh scenes at the end.
"""

import argparse
from pathlib import Path

import torch

from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from utils.tiny.clip_training import ClipTraining
from utils.tiny.evaluate import Vocabulary, evaluation_cases, score_clip, score_masks
from utils.tiny.sam2_training import Sam2Training
from utils.tiny.scene_cache import DEFAULT_CACHE, training_scenes
from utils.tiny.training_loop import Limits, Training, train

SHIPPED = {"clip": CLIP_WEIGHTS, "sam2": SAM2_WEIGHTS}
TRAININGS = {"clip": ClipTraining, "sam2": Sam2Training}
SCORED_SCENES = 20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.tiny.train", description="Train a model of the tiny world on a CPU."
    )
    parser.add_argument("model", choices=TRAININGS)
    parser.add_argument("--minutes", type=float, default=40.0, help="training time (default: 40)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--init",
        default=None,
        metavar="FILE",
        help='weights to start from; "none": from scratch (default: shipped)',
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of batches and starting values (default: 0)")
    parser.add_argument("--scenes", type=int, default=4000, help="number of training scenes (default: 4000)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=None, help="where the weights go (default: in the cache)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this model")
    return parser.parse_args(arguments)


def starting_weights(model: str, init: str | None) -> Path | None:
    """The file that --init means; None for training from scratch."""
    if init == "none":
        return None
    path = SHIPPED[model] if init is None else Path(init)
    if not path.is_file():
        raise FileNotFoundError(f'got --init {path}, which does not exist; expected a file or "none"')
    return path


def make_training(options: argparse.Namespace) -> Training:
    """The chosen training on its scenes."""
    torch.manual_seed(options.seed)
    scenes = training_scenes(options.scenes, options.cache)
    return TRAININGS[options.model](scenes, starting_weights(options.model, options.init))


def print_scores(model: str, path: Path) -> None:
    """Scores of freshly saved weights on easy scenes never trained on."""
    if model == "clip":
        scores = score_clip(Vocabulary(*load_clip(path)), SCORED_SCENES)
    else:
        scores = score_masks(evaluation_cases(load_sam2(path), SCORED_SCENES))
    print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def main(arguments: list[str] | None = None) -> None:
    """Trains, saves and scores one model."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = options.cache / f"{options.model}.checkpoint.pt"
    out = options.out or options.cache / f"tiny_{options.model}.safetensors"
    training = make_training(options)
    steps = train(training, Limits(options.minutes, None, checkpoint, options.resume), options.seed)
    training.save(out)
    print(f"{steps} steps, saved {out}")
    print_scores(options.model, out)


if __name__ == "__main__":
    main()
