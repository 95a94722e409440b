"""worker-ctl doctor."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from millhand_fleet.doctor.finding import Level, Section, worst

EXIT_CODES = {Level.OK: 0, Level.NOTE: 0, Level.WARNING: 1, Level.ERROR: 3}  # 2 is a wrong argument


@click.command()
@click.option(
    "--measure", is_flag=True, help="Also make ten short calls to find out how many the model answers at once."
)
@click.option("--quiet", "-q", is_flag=True, help="Show warnings and errors alone.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.pass_obj
def doctor(file: Path | None, *, measure: bool, quiet: bool, as_json: bool) -> None:
    """Examine the machine: programs, configuration, Redis, streams, model, fleet, files, supervision.

    Each finding comes with its remedy. Works with the fleet running or not, with Redis or the model away, and with a
    broken configuration. It changes nothing; only --measure costs anything: calls that do not go through the gate.

    Exit code: that of the worst finding. 0 all is well, or notes; 1 warnings: it works, and not as it should; 3 errors:
    a promise is broken, or nothing works until a person acts.

    \b
    Examples: worker-ctl doctor
              worker-ctl doctor --measure
              worker-ctl doctor --json | jq -r .worst
    """  # noqa: D301 - click's own mark
    from millhand_fleet.doctor.examination import examine  # noqa: PLC0415 - loads every probe

    sections = asyncio.run(examine(file, measured=measure))
    if as_json:
        click.echo(json.dumps(document(sections)))
    else:
        _show(sections, quiet=quiet)
    sys.exit(EXIT_CODES[worst(sections)])


def document(sections: tuple[Section, ...]) -> dict[str, Any]:
    """Return the examination for `--json`."""
    findings = [
        {
            "section": section.title.lower(),
            "level": finding.level.word,
            "subject": finding.subject,
            "found": finding.found,
            "remedy": finding.remedy or None,
        }
        for section in sections
        for finding in section.findings
    ]
    return {"worst": worst(sections).word, "exit_code": EXIT_CODES[worst(sections)], "findings": findings}


def _show(sections: tuple[Section, ...], *, quiet: bool) -> None:
    from millhand_fleet.doctor.page import lines  # noqa: PLC0415 - with the probes

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    for line in lines(sections, width=width, unicode=unicode, quiet=quiet):
        click.echo(line)
