"""The live world: driver, fleets of workers, and the engine in front of them."""
