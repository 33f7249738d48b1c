"""Why a merge works or hurts, from the weights alone: measures of each tensor, each expert and each pair."""
