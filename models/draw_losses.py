"""Draws models/losses.svg, held-out loss against steps, from each training.json: ``python models/draw_losses.py``."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "nestcoder"
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent


def main() -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for path in sorted(HERE.glob("*/training.json")):
        record = json.loads(path.read_text())
        steps, losses = zip(*((point["step"], point["held_out_loss"]) for point in record["curve"]), strict=True)
        axes.plot(steps, losses, label=path.parent.name)
        baselines = record["nats_per_token"]
    for name, style in (("bigram", "--"), ("unigram", ":")):
        axes.axhline(baselines[name], color="grey", linestyle=style, label=name)
    axes.set_xlabel("steps of 2,048 tokens")
    axes.set_ylabel("held-out nats a token")
    axes.legend(frameon=False)
    figure.savefig(HERE / "losses.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
