"""How are results shown? Pages, charts and the parts that they share."""
