"""Whether two arms may be compared at all: each guard with what was seen and what cures it.

`passed` is None where the series do not say enough: such a guard is shown, and does not stop the comparison.
Where one looks again and again, a guard that time or a restart may heal refuses only for certain; until then
it is `pending`, and nothing is said: whoever rolls out would be taken back for what is gone an hour later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brimline.ab.blocks import (
    OTHER_PROCESSES_BYTES,
    ArmBlocks,
    Pairing,
    cell_sums,
    crowded_on_one_side,
    sampled_at,
)
from brimline.ab.estimators import Arm, NotEnough, intensity, load_overlap
from brimline.ab.experiment import Experiment
from brimline.ab.observations import ArmObservations, Boot, Gpu, ReplicaObservations
from brimline.ab.result import Guard, Mode
from brimline.ab.series import EMPTY, finite
from brimline.units import format_bytes

Floats = NDArray[np.float64]

# Load of a replica of the candidate over one of the baseline: outside, no adjustment reaches (docs/ab.md).
LOAD_RATIOS = (0.67, 1.5)
LEAST_OVERLAP = 0.3
# Loads as near as this need no common range.
NEAR_LOADS = (0.9, 1.1)
PROMPT_DIFFERENCE = 0.10
HIT_RATE_DIFFERENCE = 0.05
# Waiting requests in so many of an arm's samples are saturation, where the other has them in no more than
# LEAST_.
MOSTLY_WAITING, SELDOM_WAITING = 0.5, 0.1
COLD_POOL_SHORTFALL = 0.03
# Looked at after every block, no word is said before so many: fewer do not tell their own spread.
LEAST_LOOKS = 10
# Guards that may hold an hour later: by themselves, or once somebody has done what their cure says. What two
# servers are (GPU, model, settings) stays what it is.
_MAY_HEAL = frozenset({"cold_boot", "mid_run_change", "prompts", "saturation", "prefix_cache", "neighbours"})
_OF_ALL_BLOCKS = frozenset({"saturation", "prefix_cache"})

# A flag that nobody set.
DEFAULT = "its default"
# Of settings that are not known, so many are named in a sentence.
MOST_NAMES = 6
# What a server makes of its settings, and names that change nothing in it: no part of what is held fixed.
NOT_HELD_FIXED = frozenset(
    {
        "host", "port", "served_model_name", "instance", "uid", "data_parallel_rank", "root",
        "num_gpu_blocks", "num_cpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency",
        "kv_cache_memory_bytes", "max_total_num_tokens",
    }
)  # fmt: skip
_OF_THE_MODEL = frozenset({"model", "revision", "quantization"})
# A changed pool holds more or fewer prefixes: then the hit rate is what the change does, not what
# disturbs it.
_OF_THE_POOL = frozenset(
    {
        "block_size", "cpu_offload_gb", "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_dtype",
        "kv_cache_memory_bytes", "kv_offloading_size", "max_model_len", "max_num_seqs",
        "max_num_batched_tokens", "mem_fraction_static", "num_gpu_blocks_override", "quantization",
        "tensor_parallel_size", "model",
    }
)  # fmt: skip

OFFERED_LOAD = {
    # Best first: what counts a request nearest to its arrival.
    "requests": (
        "time_to_first_token_seconds_count",
        "request_prompt_tokens_count",
        "requests_finished_total",
        "request_e2e_latency_seconds_count",
    ),
    "prompt_tokens": ("prompt_tokens_total", "request_prompt_tokens_sum"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What the guards look at: two arms over the cells in which they are held against each other.

    shared: for each server that the candidate has in common with another arm, which. mode: `sequential` where
    one looks again and again.
    """

    experiment: Experiment
    baseline: ArmBlocks
    candidate: ArmBlocks
    pairing: Pairing
    shared: Sequence[str] = ()
    mode: Mode = "fixed"

    @property
    def least_blocks(self) -> int:
        """So many blocks at least stand behind any word."""
        return least_blocks(self.experiment, self.mode)

    @property
    def arms(self) -> tuple[ArmObservations, ArmObservations]:
        return self.baseline.arm, self.candidate.arm

    def has(self, quantity: str) -> bool:
        return self.baseline.has(quantity) and self.candidate.has(quantity)

    def cells(self, quantity: str) -> tuple[Floats, Floats]:
        """Both arms' sums in each cell."""
        count = self.pairing.count
        return (
            self.baseline.in_cells(quantity, self.pairing.baseline, count),
            self.candidate.in_cells(quantity, self.pairing.candidate, count),
        )

    def lengths(self) -> tuple[Floats, Floats]:
        """Seconds of each cell for one replica."""
        count = self.pairing.count
        length = np.diff(self.baseline.edges)
        return cell_sums(length, self.pairing.baseline, count), cell_sums(
            length, self.pairing.candidate, count
        )

    def load_quantity(self) -> str | None:
        """The counter that says what was asked of the servers; None where they share none."""
        wanted = OFFERED_LOAD[self.experiment.load]
        others = (name for names in OFFERED_LOAD.values() if names != wanted for name in names)
        return next((name for name in (*wanted, *others) if self.has(name)), None)

    def loads(self, quantity: str) -> tuple[Floats, Floats]:
        """A quantity for each second and replica, in each cell."""
        sums, lengths = self.cells(quantity), self.lengths()
        replicas = [max(len(arm.replicas), 1) for arm in self.arms]
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[0] / lengths[0] / replicas[0], sums[1] / lengths[1] / replicas[1]

    def used(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The blocks of each arm that are in a cell."""
        return self.pairing.baseline >= 0, self.pairing.candidate >= 0


def least_blocks(experiment: Experiment, mode: Mode) -> int:
    """So many blocks at least stand behind any word."""
    if mode == "sequential" and not experiment.is_short:
        return max(experiment.min_blocks, LEAST_LOOKS)
    return experiment.min_blocks


def guards(pair: Pair) -> tuple[Guard, ...]:
    """All guards of two arms."""
    found = tuple(check(pair) for check in _CHECKS)
    if pair.mode == "fixed":
        return found
    return tuple(_patient(guard, check, pair) for guard, check in zip(found, _CHECKS, strict=True))


def _patient(guard: Guard, check: Callable[[Pair], Guard], pair: Pair) -> Guard:
    """The guard as one looks again and again: pending where it may yet hold.

    It refuses once there are as many blocks as any word needs. Of what every block counts for, the later half
    of them must say the same, since the mean of all is the last to show that it is over.
    """
    if guard.passed is not False or guard.name not in _MAY_HEAL:
        return guard
    if pair.pairing.count >= pair.least_blocks and (
        guard.name not in _OF_ALL_BLOCKS
        or check(replace(pair, pairing=_later_half(pair.pairing))).passed is False
    ):
        return guard
    return pending(guard)


def pending(guard: Guard) -> Guard:
    """The guard that does not hold so far."""
    return replace(guard, passed=None, pending=True, detail=f"{guard.detail} (so far)")


def _later_half(pairing: Pairing) -> Pairing:
    first = pairing.count // 2

    def later(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(cells >= first, cells - first, -1)

    return replace(
        pairing,
        baseline=later(pairing.baseline),
        candidate=later(pairing.candidate),
        places=pairing.places[first:],
    )


def _replicas(pair: Pair) -> Iterable[tuple[str, ReplicaObservations]]:
    for arm in pair.arms:
        for replica in arm.replicas:
            yield arm.variant, replica


def _servers(pair: Pair) -> Guard:
    missing = [arm.variant for arm in pair.arms if not arm.replicas]
    if missing:
        return Guard(
            name="servers",
            passed=False,
            detail=f"no server of {' and '.join(missing)} in the window",
            cure="look at the variant's selector, and that its servers are scraped with that label",
        )
    return Guard(
        name="servers",
        passed=True,
        detail=", ".join(f"{arm.variant}: {len(arm.replicas)}" for arm in pair.arms),
    )


def _shared_servers(pair: Pair) -> Guard:
    """A server that two selectors choose would be compared with itself."""
    if pair.shared:
        return Guard(
            name="shared_servers",
            passed=False,
            detail="; ".join(pair.shared),
            cure='give the variants selectors that no server meets twice, such as `variant="…"` or '
            '`target="…"`',
        )
    return Guard(name="shared_servers", passed=True, detail="no server is in two variants")


def _facts(gpu: Gpu) -> dict[str, str | None]:
    return {
        "GPU": gpu.name,
        "memory": None if gpu.memory_total_bytes is None else format_bytes(gpu.memory_total_bytes),
        "MIG profile": gpu.mig_profile,
        "power limit": None if gpu.power_limit_watts is None else f"{gpu.power_limit_watts:.0f} W",
        "driver": None if gpu.driver is None else gpu.driver.partition(".")[0],
    }


def _hardware(pair: Pair) -> Guard:
    """Unlike GPUs: name, memory, MIG profile, power limit, the driver's major version."""
    seen: dict[str, set[str]] = {}
    of_servers: dict[str, list[dict[str, str | None]]] = {}
    for variant, replica in _replicas(pair):
        facts_of_gpus = [_facts(gpu) for gpu in replica.gpus]
        of_servers[f"{variant}/{replica.name}"] = facts_of_gpus
        for fact, value in (each for facts in facts_of_gpus for each in facts.items()):
            if value is not None:
                seen.setdefault(fact, set()).add(f"{variant}: {value}")
    unlike = [
        f"{fact} ({', '.join(sorted(values))})"
        for fact, values in seen.items()
        if len({text.partition(": ")[2] for text in values}) > 1
    ]
    if unlike:
        return Guard(
            name="hardware",
            passed=False,
            detail=f"unlike {'; '.join(unlike)}",
            cure="run both variants on GPUs of one kind, with one driver and one power limit",
        )
    # What is known of some servers and not of others; a GPU without a MIG profile is a whole one.
    unknown = {
        server: [
            fact
            for fact in seen
            if fact != "MIG profile" and not (gpus and all(facts[fact] is not None for facts in gpus))
        ]
        for server, gpus in of_servers.items()
    }
    unknown = {server: facts for server, facts in unknown.items() if facts}
    if not seen or unknown:
        told = "; ".join(f"{', '.join(facts)} of {server}" for server, facts in unknown.items())
        return Guard(
            name="hardware",
            passed=None,
            detail=f"not known: {told}" if seen else "no GPU is known of any server",
            cure="give the sidecars access to NVML, or see for yourself that the GPUs are alike",
        )
    names = {text.partition(": ")[2] for text in seen.get("GPU", set())}
    return Guard(name="hardware", passed=True, detail=", ".join(sorted(names)) or "alike")


def _model(pair: Pair) -> Guard:
    treatment = set(pair.experiment.treatment)
    models = [sorted({model for replica in arm.replicas for model in replica.models}) for arm in pair.arms]
    engines, versions = (
        [sorted({str(value) for r in arm.replicas if (value := getattr(r, name))}) for arm in pair.arms]
        for name in ("engine", "engine_version")
    )
    if models[0] and models[1] and models[0] != models[1] and not treatment & _OF_THE_MODEL:
        return Guard(
            name="model",
            passed=False,
            detail=f"{', '.join(models[0])} against {', '.join(models[1])}",
            cure="serve one model in both, or name `model` or `quantization` under `treatment`",
        )
    unlike = [one for one in (engines, versions) if one[0] and one[1] and one[0] != one[1]]
    if unlike and not treatment & {"engine", "engine_version"}:
        sides = (", ".join([*engines[place], *versions[place]]) for place in (0, 1))
        return Guard(
            name="model",
            passed=False,
            detail=" against ".join(sides),
            cure="run one version of one engine in both, or name `engine_version` under `treatment`",
        )
    if not (models[0] and models[1]):
        return Guard(
            name="model", passed=None, detail="the servers do not say which model", cure="see for yourself"
        )
    silent = [
        f"{variant}/{replica.name}"
        for variant, replica in _replicas(pair)
        if replica.engine is None or replica.engine_version is None
    ]
    if silent and not treatment & {"engine", "engine_version"}:
        return Guard(
            name="model",
            passed=None,
            detail=f"the engine's version is not known of {', '.join(silent)}",
            cure="see for yourself that both run one version",
        )
    return Guard(
        name="model", passed=True, detail="; ".join(map(", ".join, (models[0], engines[0], versions[0])))
    )


def _settings_of(*arms: ArmObservations) -> list[dict[str, set[str]]]:
    """For each arm every value that each setting is known to have.

    Where all of them run one version of one engine, a flag that is not set has its default in each of them;
    what that is may have changed from one version to the next.
    """
    versions = {(replica.engine, replica.engine_version) for arm in arms for replica in arm.replicas}
    of_arms = []
    for arm in arms:
        values: dict[str, set[str]] = {}
        for replica in arm.replicas:
            for name, value in replica.settings.items():
                values.setdefault(name, set()).add(value)
            for name in replica.default_settings if len(versions) == 1 else ():
                values.setdefault(name, set()).add(DEFAULT)
        of_arms.append(values)
    return of_arms


def differing_settings(baseline: ArmObservations, candidate: ArmObservations) -> list[tuple[str, str, str]]:
    """Settings that are known of both arms and that differ: name, the baseline's, the candidate's."""
    first, second = _settings_of(baseline, candidate)
    return [
        (name, ", ".join(sorted(first[name])), ", ".join(sorted(second[name])))
        for name in sorted(first.keys() & second.keys())
        if first[name] != second[name]
    ]


def _settings(pair: Pair) -> Guard:
    """Undeclared differences, or none where one was declared."""
    treatment = set(pair.experiment.treatment)
    first, second = _settings_of(*pair.arms)
    uneven = [
        f"{name} in {arm.variant} ({', '.join(sorted(values[name]))})"
        for arm, values in zip(pair.arms, (first, second), strict=True)
        for name in sorted(values)
        if len(values[name]) > 1 and name not in NOT_HELD_FIXED
    ]
    if uneven:
        return Guard(
            name="settings",
            passed=False,
            detail=f"servers of one variant differ: {'; '.join(uneven)}",
            cure="give all servers of a variant the same settings, or narrow its selector",
        )
    differing = differing_settings(*pair.arms)
    undeclared = [
        f"{name} ({left} against {right})"
        for name, left, right in differing
        if name not in treatment and name not in NOT_HELD_FIXED
    ]
    if undeclared:
        names = ", ".join(sorted(treatment | {text.partition(" ")[0] for text in undeclared}))
        return Guard(
            name="settings",
            passed=False,
            detail=f"differ beside the treatment: {'; '.join(undeclared)}",
            cure=f"make them alike, or declare what is tested: `treatment: [{names}]`",
        )
    known = treatment & first.keys() & second.keys()
    if known and not known & {name for name, _, _ in differing} and known == treatment:
        return Guard(
            name="settings",
            passed=False,
            detail=f"the treatment is the same in both: {', '.join(sorted(known))}",
            cure="look at which servers the selectors choose, and at the servers' command lines",
        )
    # What was to be tested first, then what one of them states, then what neither does.
    unverified = dict.fromkeys(
        (
            *sorted(treatment - known - _OF_THE_MODEL - {"engine", "engine_version"}),
            *sorted((first.keys() ^ second.keys()) - NOT_HELD_FIXED),
            *sorted({name for _, replica in _replicas(pair) for name in replica.unpublished_settings}),
        )
    )
    if unverified or not (first and second):
        return Guard(
            name="settings",
            passed=None,
            detail=_unverified(tuple(unverified)) if unverified else "no settings are known",
            cure="write how the servers were launched into the sidecars' targets: `launch_command:`, or "
            "`{from_pid: true}` where the process is visible",
            names=tuple(unverified),
        )
    stated = sum(values != {DEFAULT} for values in first.values())
    return Guard(
        name="settings",
        passed=True,
        detail=f"{stated} settings"
        + (", all others at their defaults" if stated < len(first) else "")
        # Without a treatment nothing is meant to differ.
        + ("; only the treatment differs" if treatment else "; none differs"),
    )


def _unverified(names: Sequence[str]) -> str:
    listed = ", ".join(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        listed += f" and {len(names) - MOST_NAMES} more (--json has all)"
    what = "1 setting is" if len(names) == 1 else f"{len(names)} settings are"
    return f"{what} not known of both: {listed}"


def is_cold(replica: ReplicaObservations, others: Iterable[ReplicaObservations] = ()) -> bool | None:
    """True where its last boot has a smaller pool than another one alike; None where that cannot be told.

    others: servers of its arm, of which those with the same settings on the same GPUs count: a new pod has no
    boots of its own before this one. An engine that compiles during its first start measures more memory in
    use and leaves a smaller pool, by 3.5 against 6.0 GiB in one report (1CatAI/1Cat-vLLM issue 518) and by
    5 % in another (vLLM issue 54383).
    """
    own = _pools(replica)
    in_window = [place for place, (_, inside, _) in enumerate(own) if inside]
    if not in_window:
        return None
    (_, _, last) = own.pop(in_window[-1])
    pools = [pool for _, _, pool in own]
    pools += [pool for other in others if _is_alike(replica, other) for _, _, pool in _pools(other)]
    if pools:
        return last < max(pools) * (1 - COLD_POOL_SHORTFALL)
    last_boot = max((boot for boot in replica.boots if boot.in_window), key=lambda boot: boot.start or 0.0)
    return None if _falls_short(last_boot) is None else False


def _pools(replica: ReplicaObservations) -> list[tuple[float, bool, float]]:
    """Of each boot whose pool is known, oldest first: its start, whether in the window, the pool's bytes."""
    return sorted(
        (boot.start or 0.0, boot.in_window, boot.observed["kv_cache_capacity_bytes"])
        for boot in replica.boots
        if "kv_cache_capacity_bytes" in boot.observed
    )


def _is_alike(replica: ReplicaObservations, other: ReplicaObservations) -> bool:
    if other is replica or replica.fingerprint is None or other.fingerprint != replica.fingerprint:
        return False
    gpus, others = (
        sorted((gpu.name or "", gpu.memory_total_bytes or 0.0) for gpu in one.gpus)
        for one in (replica, other)
    )
    return gpus == others


def _falls_short(boot: Boot) -> bool | None:
    predicted = boot.predicted.get("kv_cache_capacity_bytes")
    observed = boot.observed.get("kv_cache_capacity_bytes")
    if predicted is None or observed is None or predicted <= 0:
        return None
    return observed < predicted * (1 - COLD_POOL_SHORTFALL)


def may_be_cold(replica: ReplicaObservations) -> bool:
    """True where its only known boot has a smaller pool than predicted, which a cold start would explain."""
    return len(replica.boots) == 1 and _falls_short(replica.boots[0]) is True


def _cold_boot(pair: Pair) -> Guard:
    servers = list(_replicas(pair))
    # Beside those of its own arm: what the treatment does to the pool may stand in no setting that is known.
    states = [is_cold(replica, arm.replicas) for arm in pair.arms for replica in arm.replicas]
    cold = [f"{variant}/{one.name}" for (variant, one), state in zip(servers, states, strict=True) if state]
    cure = "restart it once, so that its compile cache is warm, and measure again"
    if cold:
        return Guard(
            name="cold_boot",
            passed=False,
            detail=f"a smaller KV cache pool than other boots of the same settings had: {', '.join(cold)}",
            cure=cure,
        )
    unsure = [f"{variant}/{replica.name}" for variant, replica in servers if may_be_cold(replica)]
    if unsure:
        return Guard(
            name="cold_boot",
            passed=None,
            detail=f"a smaller pool than predicted on the only boot that is known: {', '.join(unsure)}",
            cure=cure,
        )
    untold = [
        f"{variant}/{one.name}"
        for (variant, one), state in zip(servers, states, strict=True)
        if state is None
    ]
    if untold:
        return Guard(
            name="cold_boot",
            passed=None,
            detail=f"one boot is known, and no prediction of its pool: {', '.join(untold)}",
            cure=cure,
        )
    return Guard(name="cold_boot", passed=True, detail="no boot has a smaller pool than others alike")


def _mid_run(pair: Pair) -> Guard:
    """A configuration that changed between the blocks used, or servers that came or went."""
    edges = pair.baseline.edges
    length = float(edges[1] - edges[0]) if len(edges) > 1 else 0.0
    found = []
    for arm, used in zip(pair.arms, pair.used(), strict=True):
        places = np.flatnonzero(used)
        if not len(places):
            continue
        first, last = edges[places[0]], edges[places[-1] + 1]
        found += [
            f"{arm.variant}/{replica.name} changed its configuration"
            for replica in arm.replicas
            if ((replica.changes > first) & (replica.changes < last)).any()
        ]
    for arm in pair.arms:
        spans = [(r.name, sampled_at(r)) for r in arm.replicas]
        spans = [(name, times[(times >= edges[0]) & (times <= edges[-1])]) for name, times in spans]
        known = [(name, times[0], times[-1]) for name, times in spans if len(times)]
        if not known:
            continue
        first, last = min(start for _, start, _ in known), max(end for _, _, end in known)
        if pair.mode == "fixed":
            found += [
                f"{arm.variant}/{name} came or went"
                for name, start, end in known
                if start > first + length or end < last - length
            ]
            continue
        # A server that comes later is waited for, and so is one of which nothing is read for a while: blocks
        # without it are left out.
        found += [
            f"{arm.variant}/{name} went"
            for name, _, end in known
            if end < last - length * max(pair.least_blocks, 1)
        ]
    if found:
        return Guard(
            name="mid_run_change",
            passed=False,
            detail="; ".join(found),
            cure="let the window begin after the change (`window: {start: …}`); keep the servers' number",
        )
    return Guard(
        name="mid_run_change", passed=True, detail="no change between the first block used and the last"
    )


def _load(pair: Pair) -> Guard:
    """Loads of a replica, not of an arm: a canary of one in ten servers has the load of any other."""
    cure = "route as many requests to each server of both variants, weighted by their number"
    quantity = pair.load_quantity()
    if quantity is None or pair.pairing.count == 0:
        return Guard(name="load", passed=None, detail="the servers do not count requests alike", cure=cure)
    ratio = load_ratio(pair)
    if math.isnan(ratio) or ratio <= 0:
        idle = Guard(name="load", passed=False, detail="one of the variants had no traffic", cure=cure)
        # A canary may stand idle for hours before any traffic is sent to it.
        return pending(idle) if pair.mode == "sequential" else idle
    overlap = load_overlap(*_momentary_loads(pair, quantity))
    detail = (
        f"a server of the candidate had {ratio:.2f} times the load; {overlap:.0%} of the ranges are common"
    )
    unlike = not LOAD_RATIOS[0] <= ratio <= LOAD_RATIOS[1]
    apart = overlap < LEAST_OVERLAP and not NEAR_LOADS[0] <= ratio <= NEAR_LOADS[1]
    if not (unlike or apart):
        return Guard(name="load", passed=True, detail=detail)
    guard = Guard(name="load", passed=False, detail=detail, cure=cure)
    if pair.mode == "sequential" and not _certainly_outside(
        pair, quantity, LOAD_RATIOS if unlike else NEAR_LOADS
    ):
        return pending(guard)
    return guard


def _certainly_outside(pair: Pair, quantity: str, ratios: tuple[float, float]) -> bool:
    """True where, by bounds that may be looked at any time, the ratio of loads lies outside of these."""
    if pair.pairing.count < pair.least_blocks:
        return False
    nothing = np.full(pair.pairing.count, np.nan)
    baseline, candidate = (Arm(load, nothing) for load in pair.loads(quantity))
    try:
        estimate = intensity(baseline, candidate, more_is_better=False, boot_error=0.0).estimate
    except NotEnough:
        return False
    estimate = replace(estimate, sequential=True)
    low, high = (estimate.bound(0.975, upper=upper) for upper in (False, True))
    return low > math.log(ratios[1]) or high < math.log(ratios[0])


def load_ratio(pair: Pair) -> float:
    """Load of a replica of the candidate over one of the baseline; nan where it is not known."""
    quantity = pair.load_quantity()
    if quantity is None:
        return math.nan
    sums, lengths = pair.cells(quantity), pair.lengths()
    known = np.isfinite(sums[0]) & np.isfinite(sums[1])
    replicas = [max(len(arm.replicas), 1) for arm in pair.arms]
    rates = [
        float(total[known].sum() / max(seconds[known].sum(), 1e-9) / count)
        for total, seconds, count in zip(sums, lengths, replicas, strict=True)
    ]
    return rates[1] / rates[0] if rates[0] > 0 else math.nan


def _momentary_loads(pair: Pair, quantity: str) -> tuple[Floats, Floats]:
    loads = []
    for arm, used in zip((pair.baseline, pair.candidate), pair.used(), strict=True):
        amounts = arm.amounts(quantity, momentary=True)
        moments = amounts.reshape(len(amounts), len(used), -1)[:, used]
        loads.append(moments.mean(axis=0).ravel())
    return loads[0], loads[1]


def _prompts(pair: Pair) -> Guard:
    """The negative control: users' prompts, which no variant can change."""
    cure = "split the traffic at random, request by request, and not by user or kind of task"
    prompts, requests = "request_prompt_tokens_sum", "request_prompt_tokens_count"
    if not (pair.has(prompts) and pair.has(requests)) or pair.pairing.count == 0:
        return Guard(name="prompts", passed=None, detail="no lengths of prompts are known", cure=cure)
    (tokens_b, tokens_c), (count_b, count_c) = pair.cells(prompts), pair.cells(requests)
    with np.errstate(divide="ignore", invalid="ignore"):
        nothing = np.full(len(tokens_b), np.nan)
        means = Arm(tokens_b / count_b, nothing), Arm(tokens_c / count_c, nothing)
        whole = float(
            np.nansum(tokens_c) / np.nansum(count_c) / (np.nansum(tokens_b) / np.nansum(count_b)) - 1
        )
    detail = f"prompts of the candidate are {whole:+.1%} as long on average"
    if not math.isfinite(whole):
        return Guard(name="prompts", passed=None, detail="no requests were counted", cure=cure)
    if abs(whole) <= PROMPT_DIFFERENCE:
        return Guard(name="prompts", passed=True, detail=detail)
    try:
        estimate = intensity(*means, more_is_better=False, boot_error=0.0).estimate
    except NotEnough:
        return Guard(name="prompts", passed=None, detail=detail, cure=cure)
    estimate = replace(estimate, sequential=pair.mode == "sequential")
    certain = abs(estimate.harm) > estimate.reach(0.975)
    return Guard(name="prompts", passed=False if certain else None, detail=detail, cure=cure)


def _routing(pair: Pair) -> Guard:
    routing = pair.experiment.routing
    if routing == "per_request":
        return Guard(name="routing", passed=True, detail="request by request")
    if routing == "sticky":
        return Guard(
            name="routing",
            passed=None,
            detail="sticky: a few users decide what each variant sees, so that nothing can pass",
            cure="route request by request",
        )
    return Guard(
        name="routing",
        passed=None,
        detail="not declared; with sticky sessions the intervals are too narrow",
        cure="write `routing: per_request` or `routing: sticky`",
    )


def _saturation(pair: Pair) -> Guard:
    cure = "compare at a load that both bear, or at equal latency"
    shares = shares_above_zero(pair, "requests_waiting")
    if any(map(math.isnan, shares)):
        return Guard(name="saturation", passed=None, detail="waiting requests are not counted", cure=cure)
    detail = f"requests waited in {shares[0]:.0%} and {shares[1]:.0%} of the samples"
    saturated = max(shares) > MOSTLY_WAITING and min(shares) < SELDOM_WAITING
    return Guard(name="saturation", passed=not saturated, detail=detail, cure=cure if saturated else "")


def shares_above_zero(pair: Pair, gauge_name: str) -> tuple[float, float]:
    """In how many of the samples of the blocks used a gauge was above zero, by arm; nan without samples."""
    shares = []
    for arm, used in zip((pair.baseline, pair.candidate), pair.used(), strict=True):
        above = over = 0.0
        for replica in arm.arm.replicas:
            gauge = finite(replica.series.gauges.get(gauge_name, EMPTY))
            block = np.searchsorted(arm.edges, gauge.times, side="left") - 1
            inside = (block >= 0) & (block < len(used))
            inside[inside] = used[block[inside]]
            above += float((gauge.values[inside] > 0).sum())
            over += float(inside.sum())
        shares.append(above / over if over else math.nan)
    return shares[0], shares[1]


def _prefix_cache(pair: Pair) -> Guard:
    cure = "route both variants alike and let both caches warm up (`warmup: 30m`)"
    hits, queries = "prefix_cache_hits_tokens_total", "prefix_cache_queries_tokens_total"
    if not (pair.has(hits) and pair.has(queries)) or pair.pairing.count == 0:
        return Guard(
            name="prefix_cache", passed=None, detail="hits of the prefix cache are not counted", cure=cure
        )
    rates = [
        float(np.nansum(hit) / np.nansum(query)) if np.nansum(query) > 0 else math.nan
        for hit, query in zip(pair.cells(hits), pair.cells(queries), strict=True)
    ]
    if any(map(math.isnan, rates)):
        return Guard(name="prefix_cache", passed=None, detail="the prefix cache was not asked", cure=cure)
    detail = f"hit rates {rates[0]:.1%} and {rates[1]:.1%}"
    if abs(rates[1] - rates[0]) <= HIT_RATE_DIFFERENCE:
        return Guard(name="prefix_cache", passed=True, detail=detail)
    if set(pair.experiment.treatment) & _OF_THE_POOL:
        return Guard(
            name="prefix_cache",
            passed=None,
            detail=f"{detail}; may be what the treatment does, since it changes the pool",
            cure=cure,
        )
    return Guard(name="prefix_cache", passed=False, detail=detail, cure=cure)


def _neighbours(pair: Pair) -> Guard:
    """Processes of others beside one arm most of the time; other blocks with them are left out."""
    cure = "end the other processes on the GPU, or run them beside both variants"
    held = [pair.baseline.others_bytes(), pair.candidate.others_bytes()]
    if pair.pairing.takes_turns:
        held = [np.where(used, one, np.nan) for one, used in zip(held, pair.used(), strict=True)]
    means = [float(np.nanmean(one)) if np.isfinite(one).any() else math.nan for one in held]
    if any(map(math.isnan, means)):
        return Guard(name="neighbours", passed=None, detail="other processes are not known", cure=cure)
    detail = f"other processes hold {format_bytes(means[0])} and {format_bytes(means[1])}"
    if (np.isfinite(held[0]) & np.isfinite(held[1])).any():
        crowded, mostly = crowded_on_one_side(pair.baseline, pair.candidate)
        if crowded.any():
            detail += f"; in {int(crowded.sum())} of {len(crowded)} blocks beside one variant alone"
    else:
        mostly = max(means) > OTHER_PROCESSES_BYTES >= min(means)
    return Guard(name="neighbours", passed=not mostly, detail=detail, cure=cure if mostly else "")


_CHECKS: Sequence[Callable[[Pair], Guard]] = (
    _servers,
    _shared_servers,
    _hardware,
    _model,
    _settings,
    _cold_boot,
    _mid_run,
    _load,
    _prompts,
    _routing,
    _saturation,
    _prefix_cache,
    _neighbours,
)
