"""What each subcommand can be told: one file each. Nothing here imports torch, so that help comes at once."""

# Each is a module here with a function main(arguments) -> exit code.
COMMANDS = ("rule", "plan", "verify", "audit", "explain", "train", "budget", "completion")
