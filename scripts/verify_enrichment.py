"""Prove the enrichment rate from the streams themselves: `worker-ctl verify --json`, for streams of any name.

Reads input, output and dead letters whole, and prints one JSON object. Exit code 0 if events were enriched, at the
rate asked for, and none of them twice; 1 with the reason otherwise; 69 if Redis does not answer.

    python scripts/verify_enrichment.py --redis-url redis://127.0.0.1:6379/0 --fleet events
"""

import sys
from pathlib import Path

import click

from millhand_fleet.ctl.settings import load_config
from millhand_fleet.ctl.verify import EX_NOT_PROVEN, MIN_RATE, as_json, proven


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), envvar="MILLHAND_CONFIG")
@click.option("--redis-url", "url", help="Default: the configuration's; a running embedded one is found.")
@click.option("--fleet", help="The fleet's name, from which the streams are named.")
@click.option("--input", "input_stream", help="The input stream, if it has a name of its own.")
@click.option("--output", "output_stream", help="The output stream, likewise.")
@click.option("--dead-letter", "dead_letter_stream", help="The dead-letter stream, likewise.")
@click.option("--group", help="The consumer group, likewise.")
@MIN_RATE
def main(file: Path | None, url: str | None, min_rate: float, **names: str | None) -> None:
    """Prove the enrichment rate from the streams themselves."""
    fleet = names.pop("fleet")
    flags = {"fleet.name": fleet, **{f"redis.{name}": value for name, value in names.items()}}
    report = proven(load_config(file, {**flags, "redis.url": url}), min_rate)
    click.echo(as_json(report))
    if not report.passed:
        click.echo("not proven: " + "; ".join(report.reasons), err=True)
        sys.exit(EX_NOT_PROVEN)


if __name__ == "__main__":
    main()
