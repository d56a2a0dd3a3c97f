"""The cure study: what makes a rare word overtake its near-synonym at equal collateral."""
