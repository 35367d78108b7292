"""Physical systems, and the assimilation of data into them."""
