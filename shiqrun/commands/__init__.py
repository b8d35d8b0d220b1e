"""Each module here runs one command of `shiqrun`; commands and `config` are the only readers of configs."""
