"""Text games are episodes in which a policy says actions in words: what games of several makers share."""
