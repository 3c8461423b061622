"""A configuration as a job on a Ray cluster: checked here, run there by the ordinary command.

`config` says which cluster, `job` makes a job of a configuration, `server` speaks with a cluster's job server, `follow`
copies a job's log until its end, `command` is what both command lines share.
"""
