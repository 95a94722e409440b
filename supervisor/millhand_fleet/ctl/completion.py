"""worker-ctl completion: the script by which a shell completes our commands."""

import click
from click.shell_completion import get_completion_class

from millhand_fleet.ctl.cli import COMPLETE_VARIABLE, PROGRAM, cli

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes worker-ctl. For good, put the line for your shell into its file.

    \b
    bash  ~/.bashrc                   eval "$(worker-ctl completion bash)"
    zsh   ~/.zshrc, after compinit    eval "$(worker-ctl completion zsh)"
    fish  ~/.config/fish/config.fish  worker-ctl completion fish | source

    \b
    Example: source <(worker-ctl completion bash)
    """  # noqa: D301 - click's own mark
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"  # noqa: S101
    script = kind(cli, {}, PROGRAM, COMPLETE_VARIABLE)
    click.echo(script.source_template % script.source_vars())
