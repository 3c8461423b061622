"""Looking after caches that exist: copied to another store, and rid of what no reader will ever ask for."""
