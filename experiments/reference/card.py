"""The model card: figures measured on the shipped weights and traces, written as JSON and Markdown."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from rgpu.experiments.reference.ngram import counts, cross_entropy
from rgpu.experiments.reference.training import DOMAINS, batch_at, held_out_loss, load_tokens
from rgpu.traces import stats
from rgpu.traces.trace import Trace

LAGS = (1, 2, 4, 8)


def loss_log(path: Path) -> list[dict[str, Any]]:
    """One row a step, in order; a step that was repeated after an interruption counts as last run."""
    rows = {r["step"]: r for r in map(json.loads, path.read_text().splitlines())}
    return [rows[step] for step in sorted(rows)]


def language(model: Any, corpus: Path, log: list[dict[str, Any]], cfg: Any, limit: int) -> dict[str, Any]:
    """Held-out cross-entropy in nats a token by domain: the model, and n-gram models of the very tokens it was trained on
    and of the whole training split (several times as many)."""
    train, heldout = load_tokens(corpus, "train"), load_tokens(corpus, "heldout")
    vocab = cfg.model.vocab_size
    steps = log[-1]["step"]
    seen = np.concatenate([batch_at(train, s, cfg.batch, cfg.context, cfg.seed).numpy().ravel() for s in range(steps)])
    same = counts(seen, vocab)
    every = counts(np.concatenate([train[d] for d in DOMAINS]), vocab)
    model.eval()
    losses = held_out_loss(model, heldout, limit, cfg.context)
    table = {}
    for domain in DOMAINS:
        used = min(limit, len(heldout[domain]) - 1) // cfg.context * cfg.context
        tokens = heldout[domain][: used + 1]
        unigram, bigram = cross_entropy(tokens, *same)
        _, bigram_all = cross_entropy(tokens, *every)
        table[domain] = {
            "held_out_tokens": used, "model": losses[domain], "unigram": unigram, "bigram": bigram,
            "bigram_whole_split": bigram_all, "beats_bigram": losses[domain] < min(bigram, bigram_all),
        }  # fmt: skip
    return {"training_tokens": int(log[-1]["tokens"]), "steps": steps, "domains": table}


def routing(trace: Trace) -> dict[str, Any]:
    """Routing statistics of the shipped generations, beside what popularity alone would give."""
    share_LE = stats.popularity(trace)
    reuse = stats.reuse(trace, LAGS)
    alone_L = stats.independence(share_LE, trace.header.top_k)
    names = [s["domain"] for s in trace.header.sequences]
    shares = {}
    for domain in DOMAINS:
        chosen = np.array([i for i, name in enumerate(names) if name == domain])
        shares[domain] = stats.popularity(trace.select(chosen))
    distance = {
        f"{a}-{b}": float(np.abs(shares[a] - shares[b]).sum(1).mean() / 2)
        for i, a in enumerate(DOMAINS) for b in DOMAINS[i + 1 :]
    }  # fmt: skip
    return {
        "tokens": trace.tokens,
        "normalised_entropy_by_layer": np.round(stats.normalised_entropy(share_LE), 4).tolist(),
        "top_quarter_share_by_layer": np.round(stats.top_share(share_LE), 4).tolist(),
        "reuse_lag1_by_layer": np.round(reuse[0], 4).tolist(),
        "reuse_by_lag": {str(lag): float(np.mean(row)) for lag, row in zip(LAGS, reuse, strict=True)},
        "reuse_if_independent_by_layer": np.round(alone_L, 4).tolist(),
        "reuse_if_independent": float(np.mean(alone_L)),
        "total_variation_between_domains": distance,
    }


def draw_loss(log: list[dict[str, Any]], out: Path) -> None:
    """Training loss (running mean of 20 steps) and held-out loss by domain, against tokens seen."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "rgpu", "font.size": 9}):
        figure, ax = pyplot.subplots(figsize=(6.4, 3.6))
        tokens = np.array([r["tokens"] for r in log]) / 1e6
        loss = np.array([r["loss"] for r in log])
        kernel = np.ones(20) / 20
        if len(loss) > 20:
            ax.plot(
                tokens[19:], np.convolve(loss, kernel, "valid"), color="0.6", lw=1, label="training (mean of 20 steps)"
            )
        for domain in DOMAINS:
            at = [(r["tokens"] / 1e6, r[f"heldout_{domain}"]) for r in log if f"heldout_{domain}" in r]
            ax.plot(*zip(*at, strict=True), marker="o", ms=3, lw=1.2, label=f"held out: {domain}")
        ax.set(xlabel="training tokens (millions)", ylabel="cross-entropy (nats/token)", ylim=(3, 7.5))
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(out, metadata={"Date": None})
        pyplot.close(figure)


def write(folder: Path, facts: dict[str, Any], sources: list[dict[str, Any]], config: Any) -> None:
    """`card.json` and `README.md` of the model folder; the Markdown holds nothing that the JSON does not."""
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    lm, rt = facts["language"], facts["routing"]
    wins = all(row["beats_bigram"] for row in lm["domains"].values())
    rows = "\n".join(
        f"| {d} | {r['held_out_tokens']:,} | **{r['model']:.3f}** | {r['unigram']:.3f} | {r['bigram']:.3f} | "
        f"{r['bigram_whole_split']:.3f} |"
        for d, r in lm["domains"].items()
    )
    origin = "\n".join(f"| {s['domain']} | {s['name']} (`{s['package']}`) | {s['licence']} |" for s in sources)
    layers = "\n".join(
        f"| {layer} | {e:.3f} | {t:.3f} | {u:.3f} | {i:.3f} |"
        for layer, (e, t, u, i) in enumerate(
            zip(rt["normalised_entropy_by_layer"], rt["top_quarter_share_by_layer"], rt["reuse_lag1_by_layer"],
                rt["reuse_if_independent_by_layer"], strict=True)
        )
    )  # fmt: skip
    lags = ", ".join(f"lag {lag}: {value:.3f}" for lag, value in rt["reuse_by_lag"].items())
    between = ", ".join(f"{pair} {value:.2f}" for pair, value in rt["total_variation_between_domains"].items())
    m = config.model
    verdict = f"The model {'beats' if wins else 'does **not** beat'} both bigram models on every domain."
    (folder / "README.md").write_text(f"""# rgpu reference model

A small but genuine Mixture-of-Experts language model, made so that everything in rgpu runs offline on real routing. It is
an instrument for studying expert residency, not a model to talk to.

Qwen3-MoE architecture (RMSNorm, rotary embeddings, softmax top-k router, load-balancing loss): {m.num_hidden_layers} layers,
{m.num_experts} experts a layer, top-{m.num_experts_per_tok}, hidden {m.hidden_size}, expert width {m.moe_intermediate_size},
{m.vocab_size} byte-level BPE tokens, {facts["parameters"] / 1e6:.1f} M parameters, bfloat16. Trained from scratch by
`experiments/train_reference.py` on
{lm["training_tokens"] / 1e6:.1f} M tokens ({lm["steps"]:,} steps), every domain equally often.

## Data
| domain | source | licence |
|---|---|---|
{origin}

Documents are split by a hash of their text; held-out documents were never trained on. `../heldout/` holds beginnings of
some of them, under the licences above. The weights are under Apache-2.0, as rgpu is.

## Language modelling, nats per token on held-out documents
| domain | tokens | model | unigram | bigram, same tokens | bigram, whole training split |
|---|---|---|---|---|---|
{rows}

Bigram: interpolated Kneser-Ney. "Same tokens" counts the very sequences the model saw.
{verdict}

![loss](loss.svg)

## Routing, on the shipped generations ({rt["tokens"]:,} tokens)
Reuse is the share of a token's experts that the token before it used in the same layer; "independent" is what it would be if
tokens drew from the layer's popularity independently ({rt["reuse_if_independent"]:.3f} on average). Mean over layers: {lags}.

| layer | normalised entropy | share of the top quarter | reuse, lag 1 | if independent |
|---|---|---|---|---|
{layers}

Total variation distance between the expert use of two domains (0 same, 1 disjoint), mean over layers: {between}.

Every figure is in `card.json`; `python -m rgpu.experiments.make_assets stages=[card]` measures them again.
""")
