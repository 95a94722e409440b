"""Put a real fleet through a seeded storm of faults, and judge its history: nothing lost, nothing twice, all in time.

Exit code 0 if the run is green, 1 if it is red, 3 if it proves nothing because a fault or an answer did not come up.

    python scripts/chaos.py --seed 1 --duration 40
    python scripts/chaos.py --seed 1 --duration 20 --mutant m1     # a mistake put in: this must go red
"""

import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import click  # noqa: E402 - the project's root has to be found first
import msgspec  # noqa: E402
from tests.fleet.chaos.checker import judge  # noqa: E402
from tests.fleet.chaos.mutants import MUTANTS  # noqa: E402
from tests.fleet.chaos.soak import Plan, run  # noqa: E402

MUTANT_SETTLES_S = 20.0  # what a mistake has lost does not come, however long one waits
EXIT_CODES = {"green": 0, "red": 1, "inconclusive": 3}


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Of the faults, the events and what is hit.")
@click.option("--duration", "duration_s", type=click.FloatRange(1), default=40.0, show_default=True, help="Seconds.")
@click.option("--fault", "faults", multiple=True, help="Only this fault; may be repeated. Default: all.")
@click.option("--mutant", type=click.Choice(list(MUTANTS)), default=None, help="Put a mistake in.")
@click.option("--keep", type=click.Path(path_type=Path, exists=False), help="Keep logs and history in this folder.")
@click.option("--server", "binary", type=click.Path(path_type=Path, exists=True), help="Another redis-server.")
def main(
    *, seed: int, duration_s: float, faults: tuple[str, ...], mutant: str | None, keep: Path | None, binary: Path | None
) -> None:
    """Run one storm and judge it."""
    plan = Plan(seed=seed, duration_s=duration_s, faults=faults, mutant=mutant or "", binary=binary)
    if mutant:
        plan = msgspec.structs.replace(plan, settled_within_s=MUTANT_SETTLES_S)
    with tempfile.TemporaryDirectory(prefix="millhand-chaos-") as temporary:
        judgement = judge(run(plan, keep or Path(temporary) / "run"))
    click.echo(str(judgement))
    sys.exit(EXIT_CODES[judgement.verdict])


if __name__ == "__main__":
    main()
