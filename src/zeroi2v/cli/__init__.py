"""What can be said on the command line? main.py lists the commands; each command has a file."""
