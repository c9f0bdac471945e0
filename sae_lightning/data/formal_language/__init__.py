"""Formal languages: grammars, their sentences, and the activations of models of them."""
