"""The variance probe: does the variance of a problem's gradient follow its success rate, and what
is the variance of a step's gradient under each allocation?

N problems, M rollouts of each in a bank. Half of a bank gives the prediction, the other half the
measurement, and the other way round; success rates come from rollouts of their own. So no noise is
common to what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynamo_cli.methods.advantage import GroupNormalised
from dynamo_cli.methods.aggregation import ProblemMean, TokenMean
from dynamo_cli.methods.allocation import Allocation
from dynamo_cli.methods.integer_optimum import integer_optimum
from dynamo_cli.probes.bank import Bank
from dynamo_cli.probes.draws import (
    Draws,
    contributions,
    predicted,
    spread,
    step_advantages,
    step_weights,
    values,
)
from dynamo_cli.probes.estimates import correlation, ends, estimate, resampled
from dynamo_cli.probes.proxies import NORMS, PROXIES, fits, proxies
from dynamo_cli.seeding import generator

COMMON = {"kind": "group_normalised", "ddof": 1, "eps": 1e-6, "singleton": "zero"}
ADVANTAGES = {
    "centred": GroupNormalised(**COMMON, scale="none"),
    "normalised": GroupNormalised(**COMMON, scale="std"),
}
AGGREGATIONS = {
    "problem_mean": ProblemMean(kind="problem_mean"),
    "token_mean": TokenMean(kind="token_mean"),
}
MEASURED = "measured"  # the optimum for what the other half of the bank measured
UNIFORM = "equal"
HALVES = ("first", "second")
SPREAD_DRAWS = 512  # of a single problem's gradient; they cost little


@dataclass(frozen=True, slots=True)
class Setting:
    """How steps are drawn, and how often."""

    per_step: int  # problems
    budget: int  # rollouts of a step
    known: int
    histories: int
    draws: int
    resamples: int
    seed: int

    @property
    def size(self) -> int:
        """Rollouts of a problem on average."""
        return round(self.budget / self.per_step)

    @property
    def bounds(self) -> tuple[int, int]:
        """Of the allocations that the probe itself makes: half and one and a half of the mean."""
        return self.size // 2, -(-3 * self.size // 2)


@dataclass(frozen=True, slots=True)
class Subject:
    """One problem as the probe sees it."""

    problem_id: str
    level: int | None
    rated: np.ndarray  # [G] 0 or 1: rollouts that tell its success rate
    bank: Bank

    def half(self, number: int) -> Bank:
        middle = len(self.bank) // 2
        return self.bank.part(slice(middle) if number == 0 else slice(middle, None))


def problem_table(subjects: Sequence[Subject], setting: Setting) -> pd.DataFrame:
    """One row per problem: its success rate, proxies, and sigma^2 of both halves by advantage."""
    rows = []
    for subject in subjects:
        bank = subject.bank
        row = {
            "problem_id": subject.problem_id,
            "level": subject.level,
            "rated": len(subject.rated),
            "rated_correct": int(subject.rated.sum()),
            "rollouts": len(bank),
            "correct": int(bank.correct.sum()),
            "tokens": float(bank.length.mean()),
            "norm": bank.norm(),
            "norm_first": subject.half(0).norm(),
            "norm_second": subject.half(1).norm(),
            "norm_right": bank.norm(right=True),
            "norm_wrong": bank.norm(right=False),
        }
        for name, advantage in ADVANTAGES.items():
            for number, half in enumerate(HALVES):
                source = generator(setting.seed, "spread", subject.problem_id, half)
                row[f"{name}_{half}"] = spread(
                    subject.half(number),
                    setting.size,
                    advantage,
                    number=SPREAD_DRAWS,
                    source=source,
                )
            row[name] = (row[f"{name}_first"] + row[f"{name}_second"]) / 2
        rows.append(row)
    table = pd.DataFrame(rows)
    known = table.rated_correct.to_numpy(), table.rated.to_numpy()
    found = proxies(*known, size=setting.size)
    return table.assign(rate=known[0] / known[1], size=setting.size, **found)


def proxy_table(problems: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """`proxies.fits` under each advantage, with the reliability of the measurement.

    Both halves of each problem are points, and the norm that goes with a half is that of the
    other: no rollout stands on both sides. reliability: correlation of the halves' sigma^2 over
    problems; no proxy, however right, can explain more of sigma^2 than that.
    """
    source = generator(setting.seed, "resamples", "problems")
    once = resampled(len(problems), resamples=setting.resamples, source=source)
    candidates = {name: np.tile(problems[name].to_numpy(), 2) for name in PROXIES}
    norms = np.concatenate([problems[f"norm_{half}"] for half in reversed(HALVES)])
    candidates |= {NORMS: candidates["P"] * norms}
    parts = []
    for name in ADVANTAGES:
        both = [problems[f"{name}_{half}"].to_numpy() for half in HALVES]
        part = fits(candidates, np.concatenate(both), np.tile(once, 2))
        part.insert(0, "advantage", name)
        found = estimate(correlation, *both, once)
        parts.append(part.assign(reliability=found.value))
    return pd.concat(parts, ignore_index=True)


def step_table(
    subjects: Sequence[Subject],
    problems: pd.DataFrame,
    allocations: Mapping[str, Allocation],
    setting: Setting,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row per advantage, aggregation, allocation and problem: what it adds to a step's
    variance, `measured` over repeated draws and `predicted` from sigma^2 of the other half, and
    its mean `count`; means over histories and both halves."""
    order = generator(setting.seed, "steps").permutation(len(subjects))
    steps = [order[i : i + setting.per_step] for i in range(0, len(order), setting.per_step)]
    rows = []
    rounds = [
        (history, half, step)
        for history in range(setting.histories)
        for half in range(2)
        for step in steps
    ]
    for done, (history, half, step) in enumerate(rounds, start=1):
        chosen = [subjects[i] for i in step]
        table = problems.iloc[step]
        banks = [subject.half(half) for subject in chosen]
        norms = table[f"norm_{HALVES[1 - half]}"].to_numpy()
        for advantage in ADVANTAGES:
            sigma = table[f"{advantage}_{HALVES[1 - half]}"].to_numpy()
            counts = all_counts(chosen, table, allocations, sigma, norms, setting, history)
            source = generator(setting.seed, "draws", history, half, chosen[0].problem_id)
            most = max(int(each.max()) for each in counts.values())
            draws = Draws.of(banks, most, setting.draws, source)
            for name, each in counts.items():
                for part in one_allocation(banks, draws, each, advantage, sigma):
                    rows.append(part.assign(allocation=name, problem_id=table.problem_id.array))
        report(done, len(rounds))
    keys = ["advantage", "aggregation", "allocation", "problem_id"]
    return pd.concat(rows).groupby(keys, sort=False).mean().reset_index()


def all_counts(
    subjects: Sequence[Subject],
    table: pd.DataFrame,
    allocations: Mapping[str, Allocation],
    sigma: np.ndarray,
    norms: np.ndarray,
    setting: Setting,
    history: int,
) -> dict[str, np.ndarray]:
    """[N] counts of each allocation that knows a history, of each proxy of the whole rate taken
    for the standard deviation, and of the optimum for the measured one."""
    rows = slice(history * setting.known, (history + 1) * setting.known)
    right = np.array([subject.rated[rows].sum() for subject in subjects])
    total = np.full(len(subjects), float(setting.known))
    low, high = setting.bounds

    def optimum(spread: np.ndarray) -> np.ndarray:
        return integer_optimum(spread, budget=setting.budget, low=low, high=high)

    counts = {UNIFORM: np.full(len(subjects), setting.budget // len(subjects))}
    counts[UNIFORM][: setting.budget % len(subjects)] += 1
    counts |= {
        name: rule(right, total, budget=setting.budget) for name, rule in allocations.items()
    }
    counts |= {name: optimum(table[name].to_numpy()) for name in PROXIES}
    counts |= {NORMS: optimum(np.sqrt(table["P"].to_numpy() * norms))}
    return counts | {MEASURED: optimum(np.sqrt(sigma.clip(min=0)))}


def one_allocation(
    banks: Sequence[Bank], draws: Draws, counts: np.ndarray, advantage: str, sigma: np.ndarray
) -> list[pd.DataFrame]:
    """For each aggregation, a row per problem: measured, predicted, count."""
    taken = draws.taken(counts)
    lengths = values(banks, "length", taken, counts)
    worth = step_advantages(values(banks, "correct", taken, counts), counts, ADVANTAGES[advantage])
    means = np.array([bank.length.mean() for bank in banks])
    parts = []
    for name, aggregation in AGGREGATIONS.items():
        weight = step_weights(lengths, counts, aggregation)
        parts.append(
            pd.DataFrame(
                {
                    "advantage": advantage,
                    "aggregation": name,
                    "measured": contributions(banks, taken, counts, weight * worth),
                    "predicted": predicted(sigma, counts, means, pooled=name == "token_mean"),
                    "count": counts,
                }
            )
        )
    return parts


def allocation_table(steps: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """One row per advantage, aggregation and allocation: variance of a step relative to equal
    counts, less 1, measured and predicted, with 95 % intervals over problems.

    measured_variance: the variance itself, for a step of the pool's problems.
    """
    number = steps.problem_id.nunique()
    source = generator(setting.seed, "resamples", "steps")
    weights = resampled(number, resamples=setting.resamples, source=source)
    rows = []
    for (advantage, aggregation), own in steps.groupby(["advantage", "aggregation"], sort=False):
        table = own.pivot(index="problem_id", columns="allocation")
        for name in own.allocation.unique():
            row = {"advantage": advantage, "aggregation": aggregation, "allocation": name}
            for kind in ("measured", "predicted"):
                ours, even = table[kind][name].to_numpy(), table[kind][UNIFORM].to_numpy()
                found = (weights @ ours) / (weights @ even) - 1
                low, high = ends(found)
                row[kind] = ours.sum() / even.sum() - 1
                row |= {f"{kind}_low": low, f"{kind}_high": high}
                row[f"{kind}_variance"] = ours.sum() * setting.per_step / number
            row |= {"fewest": own["count"][own.allocation == name].min()}
            row |= {"most": own["count"][own.allocation == name].max()}
            rows.append(row)
    return pd.DataFrame(rows)


def law_table(subjects: Sequence[Subject], setting: Setting) -> pd.DataFrame:
    """n times the variance of n rollouts, summed over problems, relative to that at the mean
    count: 1 throughout where the variance falls as 1 / n. One row per advantage and n."""
    rows = []
    low, high = setting.bounds
    sizes = (low, setting.size, high)
    for name, advantage in ADVANTAGES.items():
        found = {
            size: [
                spread(
                    subject.bank,
                    size,
                    advantage,
                    number=SPREAD_DRAWS,
                    source=generator(setting.seed, "law", subject.problem_id, name, size),
                )
                for subject in subjects
            ]
            for size in sizes
        }
        for size in sizes:
            share = sum(found[size]) / sum(found[setting.size])
            rows.append({"advantage": name, "size": size, "relative": share})
    return pd.DataFrame(rows)


def summary(problems: pd.DataFrame, fits: pd.DataFrame, shares: pd.DataFrame) -> dict:
    """The best proxy of sigma under each advantage, and each allocation's variance of a step."""
    best = fits.query("target == 'std' and statistic == 'r2' and best")
    return {
        "problems": len(problems),
        "best_proxy": dict(zip(best.advantage, best.proxy, strict=True)),
        "reliability": fits.groupby("advantage").reliability.first().round(6).to_dict(),
        "against_equal": {
            f"{row.advantage}, {row.aggregation}, {row.allocation}": round(row.measured, 6)
            for row in shares.itertuples()
        },
    }
