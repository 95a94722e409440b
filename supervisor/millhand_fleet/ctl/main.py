"""Where `worker-ctl` begins.

Every child process imports this module again (multiprocessing's spawn does), so it loads nothing: what the command
needs, no child does, and each would pay for it in memory and time.
"""


def main() -> None:
    """Run the command."""
    from millhand_fleet.ctl.cli import run  # noqa: PLC0415 - see above

    run()


if __name__ == "__main__":
    main()
