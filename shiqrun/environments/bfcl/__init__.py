"""In the environment BFCL multi-turn a policy calls functions, whose backends run in a confined process."""
