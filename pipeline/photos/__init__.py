"""Photos to latents of the generator, and to masks through them."""
