"""The version of the protocol: of what the frames mean and of what bundles hold."""

PROTOCOL = 7
"""A change of any message, of the hash, or of a bundle's sections raises it. Both parties must have the same."""
