"""How much can be had on any text: the optimum from samples of the reference, particles, rejection, best of n."""
