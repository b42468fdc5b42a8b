"""What others published of predictors, each with its source: facts only (see `values`)."""

from typing import Any

from rgpu.experiments.suites.published.value import Value

EDGE = "BigMoeOnEdge docs/expert-prediction.md"
SPLCH = "splch/predictability-aware-training"
FATE = "Fate, arXiv 2502.12224"
APEX = "MoE-APEX, arXiv 2411.01433, figure 8"
SPECULATING = "Speculating Experts, arXiv 2603.19289"
COLIBRI = "JustVugg/colibri"
BEYOND = "MoE-Beyond, arXiv 2508.17137"
SPEC = "SpecPrefetch, arXiv 2607.24787"
SPEQ = "MoE-SpeQ, arXiv 2511.14102"
SEQ = "SeqMoE, arXiv 2609.12978"
FLASH = "a report on Qwen3.8-Flash-Next, second hand: its address is not known"


def _at(figure: str, metric: str, value: float, source: str, about: str, unit: str = "share", **columns: Any) -> Value:
    return Value(figure, metric, value, unit, source, about, dict(columns))


def _recall() -> list[Value]:
    ahead = {"case": "layer", "predictor": "gate_lookahead"}
    out = [
        _at("recall", "recall", v, EDGE, f"{model}, gate look-ahead, width k", horizon=1, **ahead)
        for model, v in (("Qwen3-30B-A3B", 0.886), ("Qwen3.6-35B", 0.807))
    ]
    out.append(_at("recall", "recall", 0.788, FATE, "DeepSeek-V2-Lite, gate look-ahead, width k", horizon=1, **ahead))
    quasi = {"case": "layer", "predictor": "quasi_hidden"}
    out += [
        _at("recall", "recall", v, SPECULATING, "Qwen3.8-Flash-Next, quasi-hidden, width k", horizon=h, **quasi)
        for h, v in ((1, 0.775), (2, 0.66), (3, 0.56), (4, 0.50))
    ]
    probe = "small MoE of its own, before joint training"
    out += [
        _at("recall", "recall", v, SPLCH, probe, horizon=h, case="layer", predictor="trained")
        for h, v in ((1, 0.826), (2, 0.797), (4, 0.732))
    ]
    crystal = "Qwen3.8-Flash-Next, linear probe, held out, width k"
    out.append(
        _at("recall", "recall", 0.672, "skeggsguy/crystal-ball", crystal, horizon=2, case="layer", predictor="linear")
    )
    wide = "Qwen3.8-Flash-Next, quasi-hidden, width 2 k"
    out.append(_at("recall", "recall_wide", 0.92, SPECULATING, wide, horizon=1, case="layer", predictor="quasi_hidden"))
    return out


def _layers() -> list[Value]:
    out = [
        _at("layers", "top1", v, APEX, f"Mixtral 8x7B, gate look-ahead, {h} layers ahead", horizon=h)
        for h, v in ((1, 0.96), (2, 0.90), (3, 0.90))
    ]
    fate = "DeepSeek-V2-Lite, mean over layers"
    out.append(_at("layers", "recall", 0.7879, FATE, f"{fate}, width k", horizon=1, case="width k"))
    out.append(
        _at("layers", "recall", 0.9715, FATE, f"{fate}, wider by confidence", horizon=1, case="wider by confidence")
    )
    return out


def _accuracy() -> list[Value]:
    return [
        _at(
            "accuracy",
            "accuracy",
            0.975,
            BEYOND,
            "DeepSeek-V2-Lite, accuracy over 64 experts; no recall stated, F1 0.866",
        ),
        _at("accuracy", "exact_match", 0.465, SPEC, "DeepSeek-VL2-tiny, exact match at recall 0.896", x=0.896),
        _at("accuracy", "exact_match", 0.441, SPEQ, "int4 self-draft, exact match at slot recall 0.909", x=0.909),
    ]


def _transfer() -> list[Value]:
    about = "GLM-5.2, probe 3 layers ahead"
    issue = f"{COLIBRI} issue 233"
    at: dict[str, Any] = {"case": "text", "domain": "generations", "horizon": 3, "predictor": "linear"}
    return [
        _at("transfer", "recall", 0.49, issue, f"{about}, trained on document chunks", baseline="text", **at),
        _at("transfer", "recall", 0.72, issue, f"{about}, trained on generations", baseline="generations", **at),
        _at("transfer", "recall", 0.716, issue, f"{about.replace('probe', 'gate look-ahead')}",
            **{**at, "predictor": "gate_lookahead", "baseline": "generations"}),
    ]  # fmt: skip


def _next_token() -> list[Value]:
    about = "Qwen3.8-Flash-Next, next token from the hidden state"
    wide = "Qwen3-30B-A3B, routing history, top-11 of k = 8; a lower bound"
    return [
        _at("next_token", "recall", 0.15, FLASH, f"{about}; the upper of 0.10 to 0.15", case="hidden state"),
        _at("next_token", "recall_wide", 0.90, SEQ, wide, case="routed ids"),
    ]


PREDICTORS: tuple[Value, ...] = (*_recall(), *_layers(), *_accuracy(), *_transfer(), *_next_token())
