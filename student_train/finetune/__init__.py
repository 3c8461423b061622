"""What students are worth on tasks: `config` says which models and tasks, `plan` lists the runs, `training` makes one,
`run` spreads them over Ray, `records` and `results` hold what came of them."""
