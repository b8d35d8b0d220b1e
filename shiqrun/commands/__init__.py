"""Commands of `shiqrun`, one module each; together with `config` the only readers of configs."""
