"""What the subcommands of `unimodal` do, one file each."""
