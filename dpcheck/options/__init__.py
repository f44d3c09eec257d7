"""What each subcommand can be told: one file each. Nothing here imports torch, so that help comes at once."""
