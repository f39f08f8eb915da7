"""How good masks of photos are that come through the generator."""
