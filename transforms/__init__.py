"""The Beam transforms of vidpress: thin wiring around `vidpress.model`."""
