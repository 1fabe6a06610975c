"""`python -m quant_engine.demo_training`: train the demo model's own parts, going on where an earlier start ended."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quant_engine import folders
from quant_engine.demo_training import export, joint, language, projector, tower


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which stages, in this order")
    parser.add_argument("--tower-minutes", type=float, default=150)
    parser.add_argument("--language-minutes", type=float, default=120)
    parser.add_argument("--projector-minutes", type=float, default=60)
    parser.add_argument("--joint-minutes", type=float, default=60)
    parser.add_argument("--believed", type=float, default=0.5, help="share of lessons told as the tower sees them")
    parser.add_argument("--items", type=int, default=200, help="test items per task for the model card")
    parser.add_argument("--folder", type=Path, default=folders.home() / "demo-training", help="checkpoints and logs")
    parser.add_argument("--parts", type=Path, default=folders.ASSETS / "demo", help="where the parts and card go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train_tower(options: argparse.Namespace, device: torch.device) -> None:
    tower.train(options.folder, options.tower_minutes, device, options.seed)


def train_language(options: argparse.Namespace, device: torch.device) -> None:
    language.train(options.folder, options.language_minutes, device, options.seed, believed=options.believed)


def train_projector(options: argparse.Namespace, device: torch.device) -> None:
    projector.train(options.folder, options.projector_minutes, device, options.seed)


def train_joint(options: argparse.Namespace, device: torch.device) -> None:
    joint.train(options.folder, options.joint_minutes, device, options.seed)


def export_parts(options: argparse.Namespace, device: torch.device) -> None:
    export.export(options.folder, options.parts, device, options.seed, options.items)
    export.write_card(options.folder, options.parts)


STAGES = {
    "tower": train_tower,
    "language": train_language,
    "projector": train_projector,
    "joint": train_joint,
    "export": export_parts,
}


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # tiny attention weights would slow a CPU down many times
    options.folder.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        STAGES[stage](options, torch.device(options.device))


if __name__ == "__main__":
    main()
