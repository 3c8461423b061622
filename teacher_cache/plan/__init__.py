"""What a cache will weigh, take and cost, before it is begun: nothing is written but a temporary folder."""
