"""Many students from the same caches: `config` says which, `trials` lists them, `run` trains them on Ray Tune."""
