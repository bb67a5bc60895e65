"""The curves of an alignment run, from its `metrics.jsonl`."""

import json
from pathlib import Path

import matplotlib as mpl

from model_export.train.loop import METRICS


def plot_alignment(out: Path) -> None:
    """Draws `curves.png`: reward and true reward by iteration, what they cost, and where the logprobs went.

    Where the reward that is optimised still rises and the true one falls, the reward model is being over-optimised.
    """
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  (after the backend is chosen)
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    iterations = [row["iteration"] for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    left.plot(iterations, [row["valid_reward"] for row in rows], marker=".", label="reward, as optimised")
    if rows[0]["valid_truth"] is not None:
        left.plot(iterations, [row["valid_truth"] for row in rows], marker=".", label="true reward")
    kept = [row for row in rows if row["kept"]][-1]
    left.axvline(kept["iteration"], color="grey", linestyle=":", label="kept")
    left.set(xlabel="iteration", ylabel="mean of the best slate, validation")
    left.legend()
    for name, label in (("ndcg_10", "NDCG@10"), ("diversity", "diversity"), ("coverage", "coverage")):
        start = max(rows[0][f"valid_{name}"], 1e-9)
        middle.plot(iterations, [row[f"valid_{name}"] / start for row in rows], marker=".", label=label)
    middle.set(xlabel="iteration", ylabel="relative to the start, validation")
    middle.legend()
    for name, label in (("chosen_shift", "chosen"), ("rejected_shift", "rejected")):
        if len(rows) > 1 and name in rows[1]:
            right.plot(iterations[1:], [row[name] for row in rows[1:]], marker=".", label=label)
            right.legend()
    right.set(xlabel="iteration", ylabel="logprob over the reference's, nats")
    for axes in (left, middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(out / "curves.png", dpi=120)
    plt.close(figure)
