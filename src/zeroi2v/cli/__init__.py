"""What can be said on the command line? One file per command: its arguments beside its action."""
