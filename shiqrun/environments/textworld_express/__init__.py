"""TextWorldExpress is text games in Java, played in a confined process by the contract of environments."""
