"""AWQ: channels are scaled by what their inputs weigh, and the scales folded into the layer before."""
