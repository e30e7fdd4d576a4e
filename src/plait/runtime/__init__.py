"""The live world: the driver that feeds the core, the fleets that run workers, and the engine in front of them."""
