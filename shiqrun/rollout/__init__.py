"""Episodes: a policy, or a script, says what comes next in dialogues that answer."""
