"""`python -m quant_engine.demo_training`: train the demo model's own parts, going on where an earlier start ended."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from quant_engine import folders
from quant_engine.demo_training import export, joint, language, projector, tower
from quant_engine.failures import exits_plainly


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
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser.parse_args()


def export_parts(options: argparse.Namespace, device: torch.device) -> None:
    export.export(options.folder, options.parts, device, options.seed, options.items)
    export.write_card(options.folder, options.parts)


STAGES: dict[str, Callable[[argparse.Namespace, torch.device], None]] = {
    "tower": lambda o, device: tower.train(o.folder, o.tower_minutes, device, o.seed),
    "language": lambda o, device: language.train(o.folder, o.language_minutes, device, o.seed, believed=o.believed),
    "projector": lambda o, device: projector.train(o.folder, o.projector_minutes, device, o.seed),
    "joint": lambda o, device: joint.train(o.folder, o.joint_minutes, device, o.seed),
    "export": export_parts,
}


def main() -> None:
    options = arguments()
    with exits_plainly("training", "start it again: finished steps are kept", options.debug):
        if options.threads:
            torch.set_num_threads(options.threads)
        torch.set_flush_denormal(True)  # tiny attention weights would slow a CPU down many times
        options.folder.mkdir(parents=True, exist_ok=True)
        for stage in options.stages:
            STAGES[stage](options, torch.device(options.device))


if __name__ == "__main__":
    main()
