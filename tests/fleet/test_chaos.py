"""A real fleet in a storm of every fault, judged by its history; and the judge, tried on fleets with a mistake."""

from pathlib import Path

import pytest
from tests.fleet.chaos.checker import judge
from tests.fleet.chaos.mutants import MUTANTS
from tests.fleet.chaos.soak import FAKETIME, Plan, run

pytestmark = pytest.mark.xdist_group("storms")  # one after the other: two at once are too much for two cores

SEEDS = (1, 2, 3)  # a storm in which a fault did not show proves nothing, whatever it is: then the next one counts
STORM_S = 40.0
MUTANT_STORM_S = 8.0
MUTANT_SETTLES_S = 8.0


@pytest.mark.timeout(600)
def test_a_storm_of_every_fault_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """F52: safety, liveness and coverage, each a verdict of its own; what was recorded is kept where pytest says."""
    for seed in SEEDS:
        judgement = judge(run(Plan(seed=seed, duration_s=STORM_S), tmp_path / f"run-{seed}"))
        if judgement.verdict != "inconclusive":
            break

    assert judgement.verdict == "green", str(judgement)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_product_is_found_out(name: str, tmp_path: Path) -> None:
    """F52: a checker that has never been red proves nothing; each mistake breaks the invariant that it should."""
    mutant = MUTANTS[name]
    if "clock_back" in mutant.faults and not FAKETIME.exists():
        pytest.skip("libfaketime is not installed")
    for seed in SEEDS:
        plan = Plan(seed=seed, duration_s=MUTANT_STORM_S, mutant=name, settled_within_s=MUTANT_SETTLES_S)
        judgement = judge(run(plan, tmp_path / f"run-{seed}"))
        broken = {violation.number for violation in (*judgement.safety, *judgement.liveness)} & set(mutant.breaks)
        if broken:
            break

    assert broken, f"{mutant.says}: {judgement}"
