"""The generator: attention, mixture of experts, encoder, decoder, losses. No input or output."""
