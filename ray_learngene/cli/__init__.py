"""The `learngene` command, and the commands that train nothing."""
