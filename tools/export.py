"""Make one file of a trained network that runs without this project, or one of its weights alone.

    python tools/export.py --config-file configs/custom/rc2l_efficientnet-lite0.yaml \\
        --checkpoint output/custom/rc2l_efficientnet-lite0/model_best.pth --output roofs.pt

A .pt file is TorchScript: it needs PyTorch only, in Python or C++, and holds no training part. It takes one image,
(3, H, W) uint8 in RGB, of any size, and gives (K, H, W) float32, the probability of each class in each pixel; beside
it are `classes.txt` (a name a line) and `input.txt` (in which size evaluation showed images) as extra files:

    extra = {"classes.txt": "", "input.txt": ""}
    network = torch.jit.load("roofs.pt", _extra_files=extra)
    label_map = network(image).argmax(0)

It runs on the kind of device that it was exported on, MODEL.DEVICE. A .pth file holds the tensors of the network
alone, a quarter to a third of a checkpoint, and can stand wherever a checkpoint can, but for --resume.

Before anything is written, the exported network is compared with the original on images of other sizes.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.data.image_rule import ImageRule
from rc2l.engine.arguments import add_trained_network_arguments, read_arguments
from rc2l.engine.checkpoint_file import write_checkpoint
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.inference import Predictor
from rc2l.modeling.segmentor import Segmentor

#: Heights and widths on which the exported network is compared with the original; it is traced on the first.
_SIZES = ((96, 128), (128, 96), (101, 75))


class PixelProbabilities(nn.Module):
    """Semantic inference of one image, from uint8 RGB to probabilities.

    Args:
        network: in eval mode.
        bgr: it wants its channels in the order BGR.
    """

    def __init__(self, network: Segmentor, bgr: bool) -> None:
        super().__init__()
        self.network = network
        self.bgr = bgr

    def forward(self, image: Tensor) -> Tensor:
        """Shape: image (3, H, W) uint8; result (K, H, W) float32, summing to 1 over classes."""
        image = image.flip(0) if self.bgr else image
        scores = self.network.inference([{"image": image}])[0]["sem_seg"]
        return scores / scores.sum(0, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def random_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def trace(model: PixelProbabilities, device: torch.device) -> torch.jit.ScriptModule:
    """The model as TorchScript.

    Raises:
        ValueError: what was traced gives other results on images of other sizes.
    """
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        # Constants of the trace, such as the number of channels: the comparison below shows that no size is among them.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, random_image(_SIZES[0], generator).to(device), check_trace=False)
    for size in _SIZES:
        image = random_image(size, generator).to(device)
        error = (traced(image) - model(image)).abs().max().item()
        if not error < 1e-4:
            raise ValueError(f"the exported network differs by {error:.2g} on an image of {size[0]}x{size[1]} pixels")
    return traced


def input_note(cfg: CfgNode, rule: ImageRule) -> str:
    """At which size images were evaluated, and how their files became 8-bit RGB, in words."""
    if cfg.INPUT.BASE_SIZE:
        size = "resized to {}x{} pixels (height x width)".format(*cfg.INPUT.BASE_SIZE)
    elif cfg.INPUT.MIN_SIZE_TEST:
        size = f"with the short edge {cfg.INPUT.MIN_SIZE_TEST}, the long one at most {cfg.INPUT.MAX_SIZE_TEST} pixels"
    else:
        size = "in their own size"
    note = f"evaluation showed images {size}\n"
    if text := rule.describe():
        note += f"the network takes 8-bit RGB, which was made of the files so: {text}\n"
    return note


def run(args: argparse.Namespace) -> str:
    """Write the file; returns what to say of it."""
    if args.output.suffix not in (".pt", ".pth"):
        raise ValueError(f"--output {args.output}: name a .pt file for TorchScript, or a .pth file for weights")
    cfg = load_config(args.config_file, args.opts)
    resolve_device(cfg, num_gpus=1)
    predictor = Predictor(cfg, args.checkpoint, network=args.network)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.suffix == ".pth":
        write_checkpoint({"model": predictor.network.state_dict()}, args.output)
        return "weights"
    model = PixelProbabilities(predictor.network.requires_grad_(False), predictor.bgr).eval()
    traced = trace(model, predictor.network.device)
    extra = {"classes.txt": "\n".join(predictor.class_names) + "\n", "input.txt": input_note(cfg, predictor.image_rule)}
    torch.jit.save(traced, args.output, _extra_files=extra)
    return f"TorchScript for {predictor.network.device.type}"


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_trained_network_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="name.pt or name.pth")
    parser.add_argument("--network", default="", help="teacher, student, ...; by default the result of the run")
    parser.add_argument("--opts", nargs="*", default=[], help=argparse.SUPPRESS)
    args = read_arguments(parser, argv)
    content = run(args)
    print(f"{args.output}: {content} of the {args.network}, {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
