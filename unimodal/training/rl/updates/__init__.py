"""Updates of a policy, one file each: answers of tokens, and pictures that a flow has drawn."""
